"""An adapter's files: low-rank matrices of a size that their own header bears out, and no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from .configuration import check_code
from .documents import read_json
from .header import shapes_of

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# What peft imports, computes or fetches when an adapter's configuration says so.
NEVER = (
    *("megatron_config", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("velora_config", "monteclora_config", "arrow_config", "kasa_config"),
)
LISTS = ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern")
NAMES = 4096  # of modules
OWN = "transformers.models."


def check_adapter(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of an adapter's tensors; refuses one that is no LoRA, asks for code, or names a rank that they do not have.

    Raises:
        CheckpointError: It does one of these, or a file is missing or not whole.
    """
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder}: no {WEIGHTS} (pickled adapters are refused; save it again)")
    config, file = read_json(folder / CONFIG), folder / CONFIG
    check_code(config, str(file))
    if config.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{file}: peft_type is {config.get('peft_type')!r:.40}: only LORA is merged; merge it yourself"
        )
    for name in NEVER:
        if config.get(name):
            raise CheckpointError(
                f"{file}: {name} asks for more than a merge of its matrices; save the adapter without"
            )
    library = _table(config.get("auto_mapping"), "auto_mapping", file).get("parent_library", OWN)
    if not isinstance(library, str) or not library.startswith(OWN):
        raise CheckpointError(
            f"{file}: auto_mapping names a library to import ({library!r:.40}), which is never done; drop it"
        )
    if config.get("megatron_core", "megatron.core") not in (None, "megatron.core"):
        raise CheckpointError(f"{file}: megatron_core names a module to import, which is never done; drop it")
    for name in LISTS:
        _check_names(config.get(name), name, file)
    shapes = shapes_of(folder / WEIGHTS)
    ranks = {shape[0] for name, shape in shapes.items() if ".lora_A." in name or name.endswith(".lora_A") if shape}
    for rank in (config.get("r"), *_table(config.get("rank_pattern"), "rank_pattern", file).values()):
        if type(rank) is not int or rank not in ranks:
            raise CheckpointError(
                f"{file}: asks for rank {rank!r:.40}, but its matrices have {sorted(ranks) or 'none'}"
            )
    _table(config.get("alpha_pattern"), "alpha_pattern", file)
    return shapes


def _check_names(value: Any, name: str, file: Path) -> None:
    """Names of modules, or one that stands for all linear layers: a pattern would be matched against every module's name."""
    if value is None or value == "all-linear":
        return
    if isinstance(value, str):
        raise CheckpointError(f"{file}: {name} is a pattern ({value[:60]!r}): name the modules in a list")
    if not isinstance(value, list) or len(value) > NAMES or not all(isinstance(x, str | int) for x in value):
        raise CheckpointError(f"{file}: {name} is no list of at most {NAMES} names")


def _table(value: Any, name: str, file: Path) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > NAMES or not all(_plain(key) for key in value):
        raise CheckpointError(f"{file}: {name} is no table of plain module names")
    return value


def _plain(name: str) -> bool:
    """Whether a name says no more to a regular expression than itself."""
    return all(part.isidentifier() or part.isdecimal() for part in name.split("."))
