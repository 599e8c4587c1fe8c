"""Which files of a folder make a checkpoint, and what each must be like."""

from __future__ import annotations

from pathlib import Path

from ...errors import CheckpointError
from .configuration import check_code, check_configuration
from .documents import read_json
from .header import shapes_of
from .tokenizer import check_tokenizer_files

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_INDEX, _WEIGHTS = "model.safetensors.index.json", "model.safetensors"
_INDEX_LIMIT = 32 * 2**20
_SHARDS = 1024
_NAME = 60  # letters of a file's name, so that no file system finds it too long
_TEMPLATES = 2**20  # bytes


def check_files(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors in a checkpoint folder, after every check that needs no model.

    Raises:
        CheckpointError: The folder is missing, holds no configuration, no weights or no tokenizer, brings code or only
            pickles, leads out of itself, or a file is not whole.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder (for a hub id, give owner/name)")
    _check_inside(folder)
    config = read_json(folder / "config.json")
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder}: holds an adapter_config.json, with which transformers would load the model that it names instead; "
            "give that model, and this folder as the adapter"
        )
    check_code(config, str(folder / "config.json"))
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder):
        own = shapes_of(file)
        if twice := sorted(shapes.keys() & own.keys()):
            raise CheckpointError(f"{file}: tensor {twice[0][:80]!r} is in another file too; export the model again")
        shapes |= own
    check_configuration(config, shapes, str(folder / "config.json"))
    if (folder / "generation_config.json").exists():
        check_code(read_json(folder / "generation_config.json"), str(folder / "generation_config.json"))
    rows = max((shape[0] for shape in shapes.values() if shape), default=0)
    check_tokenizer_files(folder, rows=rows)
    return shapes


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a folder's weights are in, by its index where it has one.

    Raises:
        CheckpointError: There are none, or the index names a file that is missing or outside the folder.
    """
    index = folder / _INDEX
    if index.exists():
        weight_map = read_json(index, largest=_INDEX_LIMIT).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise CheckpointError(f"{index}: its weight_map is no table of file names; export the model again")
        names = sorted(set(weight_map.values()))
        for name in names:
            if (
                not name.endswith(".safetensors")
                or len(name) > _NAME
                or Path(name).name != name
                or not (folder / name).is_file()
            ):
                raise CheckpointError(f"{index}: names {name[:80]!r}, which is not a safetensors file of this folder")
        if not 0 < len(names) <= _SHARDS:
            raise CheckpointError(f"{index}: names {len(names)} files, expected 1 to {_SHARDS}")
        return [folder / name for name in names]
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder}: weights only as pickle ({pickles[0]}), which can run code when opened and is refused; convert it "
            "where it can do no harm: AutoModelForCausalLM.from_pretrained(old).save_pretrained(new) writes safetensors"
        )
    raise CheckpointError(f"{folder}: no weights (model.safetensors or model.safetensors.index.json)")


def _check_inside(folder: Path) -> None:
    """No file that may be read lies elsewhere, but for the hub's cache, whose snapshots are links into its blobs."""
    home = folder.resolve()
    roots = [home, *([home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [])]
    for file in folder.iterdir():
        if file.suffix not in (".json", ".jinja", ".safetensors", ".model", ".txt") or file.is_dir():
            continue
        try:
            real = file.resolve(strict=True)
        except (OSError, RuntimeError):
            raise CheckpointError(f"{file}: is a link to nothing; copy the file itself") from None
        if not any(real.is_relative_to(root) for root in roots):
            raise CheckpointError(f"{file}: is a link out of the folder, which is not followed; copy the file itself")
        if not real.is_file():
            raise CheckpointError(f"{file}: is no ordinary file; copy the file itself")
        if file.suffix == ".jinja" and real.stat().st_size > _TEMPLATES:
            raise CheckpointError(f"{file}: has more than {_TEMPLATES} bytes, which is no chat template; drop it")
