"""What is checked on a checkpoint's files before any model is built from them.

A checkpoint under audit is hostile: no pickle is opened, no code that it brings is run, and nothing is allocated from
its configuration before the weights' own headers bear it out. Knows nothing about models.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

from ..errors import CheckpointError

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HEADER_LIMIT = 100 * 2**20
_WIDTH = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


def check_files(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors in a checkpoint folder, after every check that needs no model.

    Raises:
        CheckpointError: The folder is missing, holds no configuration, no weights or no tokenizer, brings code or only
            pickles, or a weights file is not whole.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder (for a hub id, give owner/name)")
    config = read_json(folder / "config.json")
    for name, settings in (
        ("config.json", config),
        ("tokenizer_config.json", _optional(folder, "tokenizer_config.json")),
    ):
        if "auto_map" in settings:
            raise CheckpointError(
                f"{folder / name}: asks to run code of its own (auto_map), which is never done; "
                "convert the model to an architecture that transformers has"
            )
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder):
        shapes |= _shapes(file)
    for size in ("num_hidden_layers", "n_layer"):
        layers = config.get(size)
        if isinstance(layers, int) and not 0 < layers <= len(shapes):
            raise CheckpointError(
                f"{folder / 'config.json'}: {size} is {layers}, which the {len(shapes)} tensors of the weights cannot fill"
            )
    rows = max((shape[0] for shape in shapes.values() if shape), default=0)
    vocabulary = config.get("vocab_size")
    if isinstance(vocabulary, int) and not 0 < vocabulary <= rows:
        raise CheckpointError(
            f"{folder / 'config.json'}: vocab_size is {vocabulary}, but no tensor of the weights has as many rows"
        )
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        raise CheckpointError(
            f"{folder}: no tokenizer (tokenizer.json, tokenizer.model or vocab.json); save it there with "
            "tokenizer.save_pretrained"
        )
    return shapes


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a folder's weights are in, by its index where it has one.

    Raises:
        CheckpointError: There are none, or the index names a file that is missing or outside the folder.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise CheckpointError(f"{index}: names {name!r}, which is not a file of this folder")
        files = [folder / name for name in names]
    else:
        files = [file for file in (folder / "model.safetensors",) if file.is_file()]
    if files:
        return files
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder}: weights only as pickle ({pickles[0]}), which can run code when opened and is refused; convert it "
            "where it can do no harm: AutoModelForCausalLM.from_pretrained(old).save_pretrained(new) writes safetensors"
        )
    raise CheckpointError(f"{folder}: no weights (model.safetensors or model.safetensors.index.json)")


def read_json(path: Path) -> dict:
    """A JSON object from a file.

    Raises:
        CheckpointError: The file is missing, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: no {path.name}; is this a Hugging Face model folder?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return value


def _optional(folder: Path, name: str) -> dict:
    return read_json(folder / name) if (folder / name).exists() else {}


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Tensor shapes from a safetensors header that agrees with the size of its file."""
    size = file.stat().st_size
    broken = f"{file}: not a whole safetensors file"
    if size < 8:
        raise CheckpointError(f"{broken} ({size} bytes); copy it again")
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > min(size - 8, _HEADER_LIMIT):
            raise CheckpointError(f"{broken} (its header claims {length} bytes of {size}); copy it again")
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError):
            raise CheckpointError(f"{broken} (its header is not JSON); copy it again") from None
    header.pop("__metadata__", None)
    shapes, end = {}, 0
    try:
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            count = 1
            for extent in entry["shape"]:
                count *= extent
            if min(start, stop - start, *entry["shape"], 0) < 0 or count * _WIDTH.get(entry["dtype"], 1) > stop - start:
                raise CheckpointError(f"{broken} (tensor {name!r} does not fit its place); export the model again")
            shapes[name], end = tuple(entry["shape"]), max(end, stop)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"{broken} (its header is not a table of tensors); export the model again") from None
    if 8 + length + end != size:
        raise CheckpointError(f"{broken} (its header describes {8 + length + end} bytes, it has {size}); copy it again")
    return shapes
