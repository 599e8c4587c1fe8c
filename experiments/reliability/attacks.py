"""What a hostile checkpoint, tokenizer, template or adapter may hold, each as a change to a sound one.

An attack that brings code writes it so that it would leave a canary, a file that must never appear.
"""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ...models.checkpoint.header import METADATA
from .small_checkpoint import ADAPTER, ADAPTER_WEIGHTS, INDEX, WEIGHTS, joined, parts

# A sound checkpoint with an adapter in `adapter/`, and the canary; it is changed in place.
Damage = Callable[[Path, Path], object]
TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"


@dataclass(frozen=True)
class Attack:
    """One of them.

    Attributes:
        says: What stands in the line that refuses it, as a regular expression.
        kind: What it is an attack with.
    """

    damage: Damage
    says: str
    kind: str = ""

    @property
    def on_adapter(self) -> bool:
        return self.kind == "adapters"


class Payload:
    """Leaves the canary where it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def code_for(canary: Path) -> str:
    """A module that leaves the canary where it is imported."""
    return f"from pathlib import Path\nPath({str(canary)!r}).touch()\nclass Evil: pass\ndef generate(*_, **__): pass\n"


def _pickled(name: str) -> Damage:
    def damage(folder: Path, canary: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / name).write_bytes(pickle.dumps(Payload(canary)))

    return damage


def _by_torch(folder: Path, canary: Path) -> None:
    torch.save({"x": Payload(canary)}, folder / WEIGHTS)


def _zipped(folder: Path, canary: Path) -> None:
    (folder / WEIGHTS).unlink()
    with zipfile.ZipFile(folder / WEIGHTS, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(canary)))


def _index_of_pickles(folder: Path, canary: Path) -> None:
    _pickled("pytorch_model.bin")(folder, canary)
    _indexed("pytorch_model.bin")(folder, canary)


def _optimizer_alone(folder: Path, canary: Path) -> None:
    _pickled("optimizer.pt")(folder, canary)
    (folder / "training_args.bin").write_bytes(pickle.dumps(Payload(canary)))


def _with_code(damage: Damage) -> Damage:
    """The code lies in the folder under each name by which it may be asked for."""

    def both(folder: Path, canary: Path) -> None:
        for name in ("evil.py", "custom_generate/generate.py"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(code_for(canary))
        damage(folder, canary)

    return both


def _fields(name: str = "config.json", **changes: Any) -> Damage:
    def damage(folder: Path, _canary: Path) -> None:
        known = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(known | changes))

    return damage


def _written(name: str, content: str | bytes) -> Damage:
    return lambda folder, _: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def _header(change: Callable[[dict[str, Any]], Any], name: str = WEIGHTS) -> Damage:
    """The header changed as a table, or another in its place; the tensors stay as they are."""

    def damage(folder: Path, _canary: Path) -> None:
        head, tensors = parts((folder / name).read_bytes())
        header = json.loads(head)
        changed = change(header)
        text = changed if isinstance(changed, bytes) else json.dumps(header).encode()
        (folder / name).write_bytes(joined(text, tensors))

    return damage


def _first(header: Mapping[str, Any]) -> Any:
    return next(entry for name, entry in header.items() if name != METADATA)


def _twice(header: Mapping[str, Any]) -> bytes:
    name, entry = next((n, e) for n, e in header.items() if n != METADATA)
    return (json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(entry)}}}").encode()


def _overlapping(header: Mapping[str, Any]) -> None:
    for entry in list(header.values())[-2:]:
        entry |= _first(header)


def _of_nothing(_header: object) -> bytes:
    entries = (b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(1_000_000))
    return b"{" + b",".join(entries) + b"}"


def _tensors(change: Callable[[dict[str, torch.Tensor]], object], name: str = WEIGHTS) -> Damage:
    def damage(folder: Path, _canary: Path) -> None:
        found = {key: value.clone() for key, value in load_file(folder / name).items()}
        change(found)
        save_file(found, folder / name, {"format": "pt"})

    return damage


def _widened(found: dict[str, torch.Tensor]) -> None:
    name = next(name for name in found if "lora_B" in name)
    found[name] = torch.zeros(found[name].shape[0] + 7, found[name].shape[1])


def _cut(share: float) -> Damage:
    def damage(folder: Path, _canary: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(content[: int(share * len(content))])

    return damage


def _indexed(*names: str) -> Damage:
    """An index that names these files, one for each tensor."""

    def damage(folder: Path, _canary: Path) -> None:
        (folder / INDEX).write_text(json.dumps({"weight_map": {f"tensor {i}": name for i, name in enumerate(names)}}))

    return damage


def _sharded(second: bytes | None) -> Damage:
    """Two shards: the sound weights, and this; None where it is not there."""

    def damage(folder: Path, canary: Path) -> None:
        if second is not None:
            (folder / "more.safetensors").write_bytes(second)
        _indexed(WEIGHTS, "more.safetensors")(folder, canary)

    return damage


def _beside(folder: Path, canary: Path) -> None:
    shutil.move(folder / WEIGHTS, canary.with_name("outside.safetensors"))
    _indexed("../outside.safetensors")(folder, canary)


def _linked_out(name: str) -> Damage:
    def damage(folder: Path, canary: Path) -> None:
        outside = canary.with_name("outside")
        shutil.move(folder / name, outside)
        (folder / name).symlink_to(outside)

    return damage


def _linked_to(target: str) -> Damage:
    def damage(folder: Path, _canary: Path) -> None:
        (folder / "config.json").unlink()
        (folder / "config.json").symlink_to(target)

    return damage


def _pattern(text: str) -> Damage:
    def damage(folder: Path, _canary: Path) -> None:
        made = json.loads((folder / TOKENIZER).read_text())
        split = {"type": "Split", "pattern": {"Regex": text}, "behavior": "Isolated", "invert": False}
        made["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, made["pre_tokenizer"]]}
        (folder / TOKENIZER).write_text(json.dumps(made))

    return damage


def _added(n: int, **fields: Any) -> Damage:
    def damage(folder: Path, _canary: Path) -> None:
        made = json.loads((folder / TOKENIZER).read_text())
        token = fields or made["added_tokens"][0]
        made["added_tokens"] += [token | {"id": 300 + i, "content": f"<{i}>"} for i in range(n)]
        (folder / TOKENIZER).write_text(json.dumps(made))

    return damage


def _template(text: str) -> Damage:
    """`CANARY` in it stands for the canary's path."""
    return lambda folder, canary: (folder / TEMPLATE).write_text(text.replace("CANARY", repr(str(canary))))


def _numbers(name: str, value: float, rows: int | None = None) -> Damage:
    return _tensors(lambda found: found[name][:rows].fill_(value))


TEMPLATES: Mapping[str, str] = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "a loop over the messages in a loop": "{% for a in messages %}{% for b in range(10**9) %}x{% endfor %}{% endfor %}",
    "a long text": "{{ 'a' * 10**11 }}",
    "a text that doubles": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "a wide format": "{{ '%999999999999d' % 7 }}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['__builtins__']['open'](CANARY, 'w') }}",
    "a file": "{% include CANARY %}",
    "an error of its own": "{{ raise_exception('never') }}",
    "no template": "{% for %}",
    "a number to a power": "{{ 9 ** (9 ** 9) }}",
}
_ADAPTERS: Mapping[str, tuple[dict[str, Any], str]] = {
    "a rank of 10^9": ({"r": 10**9}, "asks for rank 1000000000"),
    "a rank of none": ({"r": None}, "asks for rank None"),
    "an absurd rank for one module": ({"rank_pattern": {"q_proj": 10**8}}, "asks for rank"),
    "a pattern as a module": ({"target_modules": "(a+)+$"}, "is a pattern"),
    "a pattern as a key": ({"rank_pattern": {"(a+)+$": 2}}, "plain module names"),
    "a class to import": ({"auto_mapping": {"base_model_class": "X", "parent_library": "os"}}, "auto_mapping"),
    "a module to import": ({"megatron_core": "antigravity"}, "megatron_core"),
    "weights to compute": ({"loftq_config": {"loftq_bits": 4}}, "loftq_config"),
    "another kind": ({"peft_type": "PROMPT_TUNING"}, "only LORA"),
    "code of its own": ({"auto_map": {"x": "y"}}, "auto_map"),
}
_BROKEN, _ELSEWHERE = "not a whole safetensors file", "not a safetensors file of this folder"

_BY_KIND: Mapping[str, Mapping[str, tuple[Damage, str]]] = {
    "pickles": {
        "a pickle named .bin": (_pickled("pytorch_model.bin"), "refused"),
        "a pickle named .pt": (_pickled("model.pt"), "refused"),
        "a pickle named .safetensors": (_pickled(WEIGHTS), _BROKEN),
        "torch.save named .safetensors": (_by_torch, _BROKEN),
        "a pickle in a zip": (_zipped, _BROKEN),
        "an index of pickles": (_index_of_pickles, _ELSEWHERE),
        "the state of an optimizer, and no weights": (_optimizer_alone, "refused"),
    },
    "code of its own": {
        "a model class": (_with_code(_fields(auto_map={"AutoModelForCausalLM": "evil.Evil"})), "auto_map"),
        "a configuration class": (_with_code(_fields(auto_map={"AutoConfig": "evil.Evil"})), "auto_map"),
        "a class for a part": (_with_code(_fields(text_config={"auto_map": {"AutoModel": "evil.Evil"}})), "auto_map"),
        "a tokenizer class": (
            _with_code(_fields(SETTINGS, auto_map={"AutoTokenizer": ["evil.Evil", None]})),
            "auto_map",
        ),
        "its own generation": (
            _with_code(_fields("generation_config.json", custom_generate="custom_generate")),
            "custom_generate",
        ),
        "kernels from a hub": (_fields(attn_implementation="evil/kernels"), "kernels"),
        "somebody else's quantiser": (_fields(quantization_config={"quant_method": "evil"}), "quantised"),
        "an adapter that names its base": (_written("adapter_config.json", "{}"), "load the model that it names"),
    },
    "configurations": {
        "a billion layers": (_fields(num_hidden_layers=10**9), "cannot fill"),
        "a negative number of layers": (_fields(num_hidden_layers=-1), "cannot fill"),
        "a billion layers of a part": (_fields(text_config={"num_hidden_layers": 10**9}), "cannot fill"),
        "a hidden size of 2^40": (_fields(hidden_size=2**40), "no tensor of the weights has such an extent"),
        "a negative width": (_fields(intermediate_size=-5), "no tensor of the weights has such an extent"),
        "a billion heads": (_fields(num_attention_heads=10**9), "no tensor of the weights has such an extent"),
        "wider than its weights": (
            _fields(intermediate_size=250, hidden_size=250),
            "mismatched|cannot build|asks for",
        ),
        "a vocabulary of 2^31": (_fields(vocab_size=2**31), "as many rows"),
        "half a vocabulary": (_fields(vocab_size=100.5), "as many rows"),
        "endless positions": (_fields(max_position_embeddings=10**12), "max_position_embeddings"),
        "a number of 5,000 digits": (
            _written("config.json", '{"hidden_size": ' + "9" * 5000 + "}"),
            "cannot be read as JSON",
        ),
        "bottomless nesting": (
            _written("config.json", '{"a":' * 50_000 + "1" + "}" * 50_000),
            "cannot be read as JSON",
        ),
        "a field twice": (_written("config.json", '{"hidden_size": 32, "hidden_size": 64}'), "twice"),
        "5 MB": (_written("config.json", '{"a": "' + "x" * 5_000_000 + '"}'), "bytes"),
    },
    "headers of weights": {
        "an empty file": (_written(WEIGHTS, b""), "0 bytes"),
        "eight bytes": (_written(WEIGHTS, joined(b"", b"", length=2**63)), "header claims"),
        "a length of 2^64 - 1": (_written(WEIGHTS, b"\xff" * 8 + b"{}" * 50), "header claims"),
        "a file cut in its header": (_cut(0.001), _BROKEN),
        "a file cut in its tensors": (_cut(0.9), _BROKEN),
        "a tensor twice": (_header(_twice), "twice"),
        "overlapping tensors": (_header(_overlapping), "overlaps another|describes"),
        "a place before the file": (_header(lambda h: _first(h).update(data_offsets=[-8, 8])), "shape or place"),
        "a place behind the file": (
            _header(lambda h: _first(h).update(data_offsets=[2**50, 2**50 + 8])),
            "fit its place",
        ),
        "a shape of 2^60": (_header(lambda h: _first(h).update(shape=[2**60, 2**60])), "fit its place"),
        "a shape of halves": (_header(lambda h: _first(h).update(shape=[0.5, 64])), "shape or place"),
        "a shape of truths": (_header(lambda h: _first(h).update(shape=[True, 64])), "shape or place"),
        "a dtype of its own": (_header(lambda h: _first(h).update(dtype="EVIL")), "dtype"),
        "one field more": (_header(lambda h: _first(h).update(code="x")), "described by"),
        "a list": (_header(lambda _: b"[]"), "JSON object"),
        "100,000 brackets": (_header(lambda _: b"[" * 100_000), "cannot be read as JSON"),
        "a million tensors of nothing": (
            _header(_of_nothing),
            "header claims",
        ),
    },
    "indexes and links": {
        "an index of a file elsewhere": (_beside, _ELSEWHERE),
        "an index of an absolute path": (_indexed("/etc/hostname"), _ELSEWHERE),
        "a shard that is not there": (_sharded(None), _ELSEWHERE),
        "a shard of no bytes": (_sharded(b""), "0 bytes"),
        "a shard cut short": (_sharded(joined(b'{"x":', b"", length=900)), "header claims"),
        "an index that names a tensor twice": (_written(INDEX, '{"weight_map": {"x": "a", "x": "b"}}'), "twice"),
        "an index of 100,000 files": (
            _written(INDEX, json.dumps({"weight_map": {str(i): f"{i}.safetensors" for i in range(100_000)}})),
            _ELSEWHERE,
        ),
        "weights by a link out of the folder": (_linked_out(WEIGHTS), "link out of the folder"),
        "a configuration by such a link": (_linked_out("config.json"), "link out of the folder"),
        "a tokenizer by such a link": (_linked_out(TOKENIZER), "link out of the folder"),
        "a configuration that is a device": (_linked_to("/dev/zero"), "link out of the folder"),
        "a configuration that is itself by a link": (_linked_to("config.json"), "link to nothing"),
    },
    "tokenizers": {
        "its file by path": (_fields(SETTINGS, tokenizer_file="/etc/hostname"), "another file"),
        "a pattern that never ends": (_pattern(r"(a+)+$"), "for ever"),
        "a pattern of two ways": (_pattern(r"(?:\w|\d)*x"), "for ever"),
        "30,000 added tokens": (_added(30_000), "adds 3000"),
        "a million added tokens": (_added(1_000_000, special=True), "adds 1000001 tokens"),
        "three million added tokens": (_added(3_000_000, special=True), "bytes"),
        "no vocabulary": (_written(TOKENIZER, '{"model": {}}'), "no table of tokens"),
        "half a file": (_written(TOKENIZER, '{"model": {"vocab": {"a'), "cannot be read as JSON"),
    },
    "chat templates": {name: (_template(text), "chat template cannot be rendered") for name, text in TEMPLATES.items()},
    "numbers": {
        "NaN": (_numbers("model.norm.weight", float("nan")), "NaN or infinite"),
        "infinity": (_numbers("model.norm.weight", float("inf"), 1), "NaN or infinite"),
        "subnormal": (_numbers("lm_head.weight", 1e-40), "subnormal"),
    },
    "adapters": {
        **{name: (_fields(ADAPTER, **changes), says) for name, (changes, says) in _ADAPTERS.items()},
        "a matrix that is not there": (
            _tensors(lambda found: found.pop(next(iter(found))), ADAPTER_WEIGHTS),
            "has no tensor",
        ),
        "a matrix for no module": (
            _tensors(
                lambda found: found.update({"base_model.model.x.lora_A.weight": torch.ones(2, 16)}), ADAPTER_WEIGHTS
            ),
            "that no module takes",
        ),
        "matrices of another shape": (_tensors(_widened, ADAPTER_WEIGHTS), "does not fit this base"),
        "NaN": (
            _tensors(lambda found: [one.fill_(float("nan")) for one in found.values()], ADAPTER_WEIGHTS),
            "NaN or infinite",
        ),
        "overlapping tensors": (_header(_overlapping, ADAPTER_WEIGHTS), "overlaps another|describes"),
        "a pickle": (
            lambda folder, canary: [
                (folder / ADAPTER_WEIGHTS).unlink(),
                (folder / "adapter/adapter_model.bin").write_bytes(pickle.dumps(Payload(canary))),
            ],
            "pickled adapters are refused",
        ),
    },
}
ATTACKS: Mapping[str, Attack] = {
    f"{kind}: {name}": Attack(damage, says, kind)
    for kind, attacks in _BY_KIND.items()
    for name, (damage, says) in attacks.items()
}
