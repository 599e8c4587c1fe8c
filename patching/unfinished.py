"""A sweep that can be stopped: what has been measured so far, in one small file that knows which sweep it is of."""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from pathlib import Path

import numpy as np

from ..errors import OutputError

# Seconds between writes inside a block: a stopped sweep loses no more than this.
_PAUSE = 10.0


class Unfinished:
    """The file of an unfinished sweep; with no path, does nothing.

    Args:
        path: Where it is, or is to be.
        sweep: Everything that the numbers depend on, as text.
    """

    def __init__(self, path: str | Path | None, sweep: str):
        self.path = Path(path) if path is not None else None
        self.fingerprint = hashlib.sha256(sweep.encode()).hexdigest()
        self._saved = time.monotonic()

    def load(self) -> tuple[np.ndarray, np.ndarray, float] | None:
        """Effect, baselines and noise as last saved; None where there is no file.

        Raises:
            OutputError: The file is of another sweep, or damaged.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as saved:
                if str(saved["fingerprint"]) != self.fingerprint:
                    raise OutputError(
                        f"{self.path}: is of another sweep (other model, pairs, site, axes, direction or metric): "
                        "give another path, or delete it"
                    )
                return saved["effect"], saved["baselines"], float(saved["noise"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise OutputError(f"{self.path}: not an unfinished sweep ({error}): delete it") from None

    def save(self, effect: np.ndarray, baselines: np.ndarray, noise: float) -> None:
        """Write under a temporary name, then rename: a broken write leaves the last good file.

        Raises:
            OutputError: The file cannot be written.
        """
        if self.path is None:
            return
        partial = self.path.with_name(f".{self.path.name}.partial-{os.getpid()}")
        try:
            with partial.open("wb") as file:
                np.savez(file, fingerprint=self.fingerprint, effect=effect, baselines=baselines, noise=noise)
            os.replace(partial, self.path)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror or error})") from None
        finally:
            partial.unlink(missing_ok=True)
        self._saved = time.monotonic()

    def save_now_and_then(self, effect: np.ndarray, baselines: np.ndarray, noise: float) -> None:
        """The same, but not more often than is worth the writing."""
        if time.monotonic() - self._saved > _PAUSE:
            self.save(effect, baselines, noise)

    def remove(self) -> None:
        """The sweep is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
