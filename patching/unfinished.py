"""A sweep that can be stopped: what has been measured so far, in one small file that knows which sweep it is of."""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import OutputError
from .engine import CannotSplit
from .measuring import EngineName, Inexact, Measured

# Seconds between writes: a sweep that is killed loses no more than this; one that is interrupted loses nothing.
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

    def load(self) -> Measured | None:
        """What has been measured as last saved; None where there is no file.

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
                engine: EngineName = "wavefront" if str(saved["engine"]) == "wavefront" else "per layer"
                return Measured(saved["effect"], saved["baselines"], engine, float(saved["noise"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise OutputError(f"{self.path}: not an unfinished sweep ({error}): delete it") from None

    @contextmanager
    def saved_at_the_end(self, found: Measured) -> Iterator[Callable[[Measured], None]]:
        """Gives a function that saves now and then. Saves what there is if the work is stopped; removes the file if not.

        Raises:
            OutputError: The file cannot be written.
        """
        try:
            yield self._save_now_and_then
        except (CannotSplit, Inexact):
            raise  # nothing that an engine has done which will not do
        except BaseException:
            self._save(found)
            raise
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _save_now_and_then(self, found: Measured) -> None:
        if time.monotonic() - self._saved > _PAUSE:
            self._save(found)

    def _save(self, found: Measured) -> None:
        """Write under a temporary name, then rename: a broken write leaves the last good file."""
        if self.path is None:
            return
        partial = self.path.with_name(f".{self.path.name}.partial-{os.getpid()}")
        try:
            with partial.open("wb") as file:
                np.savez(file, fingerprint=self.fingerprint, **vars(found))
            os.replace(partial, self.path)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror or error})") from None
        finally:
            partial.unlink(missing_ok=True)
        self._saved = time.monotonic()
