"""A sweep that can be stopped: what has been measured so far, in one small file that knows which sweep it is of."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from ..errors import OutputError
from ..writing import whole_file
from .engine import CannotSplit
from .measuring import EngineName, Inexact, Measured
from .stored_arrays import read_arrays

# Seconds between writes: a sweep that is killed loses no more than this; one that is interrupted loses nothing.
PAUSE = 10.0

_SIMPLE = (str, bytes, int, float, complex, type(None))


def identity(value: Any) -> str:
    """Text that tells one metric from another: of a dataclass every field, of tensors and arrays every byte.

    A function is known by its name, its code and the plain values that it closes over, any other object by its type and
    its plain attributes. What else either holds (a list that it fills, say) may differ from run to run.
    """
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return f"{value.dtype}{tuple(value.shape)}{hashlib.sha256(raw).hexdigest()}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, _SIMPLE):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return str([identity(part) for part in value])
    if isinstance(value, dict):
        return str([(identity(key), identity(part)) for key, part in value.items()])
    if isinstance(value, partial):
        return str([identity(part) for part in (value.func, value.args, value.keywords)])
    if isinstance(value, FunctionType):
        code, closed = value.__code__, inspect.getclosurevars(value).nonlocals
        consts = [const for const in code.co_consts if isinstance(const, _SIMPLE)]
        held = {**closed, "defaults": value.__defaults__}
        known = [f"{value.__module__}.{value.__qualname__}", code.co_code.hex(), str(consts), str(code.co_names)]
    elif dataclasses.is_dataclass(value):
        held = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return str([f"{type(value).__module__}.{type(value).__qualname__}", identity(held)])
    else:
        known, held = [f"{type(value).__module__}.{type(value).__qualname__}"], getattr(value, "__dict__", {})
    plain = {name: part for name, part in held.items() if isinstance(part, (*_SIMPLE, Tensor, np.ndarray, tuple))}
    return str([*known, identity(plain)])


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

    def load(self, nothing: Measured) -> Measured:
        """What has been measured as last saved; `nothing`, which says how large it would be, where there is no file.

        Raises:
            OutputError: The file is of another sweep, or damaged.
        """
        if self.path is None or not self.path.exists():
            return nothing
        try:
            saved = read_arrays(self.path, ("fingerprint", *vars(nothing)))
            if str(saved["fingerprint"]) != self.fingerprint:
                raise OutputError(
                    f"{self.path}: is of another sweep (other model, pairs, site, axes, direction or metric): "
                    "give another path, or delete it"
                )
            found = Measured(
                **{name: saved[name] for name in ("effect", "baselines")},
                engine=str(saved["engine"]),  # type: ignore[arg-type]
                noise=float(saved["noise"]),
                why=str(saved["why"]),
            )
            _check(found, nothing)
        except (OSError, ValueError, TypeError) as error:
            raise OutputError(f"{self.path}: not an unfinished sweep ({error}): delete it") from None
        return found

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
        if time.monotonic() - self._saved > PAUSE:
            self._save(found)

    def _save(self, found: Measured) -> None:
        """Write under a temporary name, then rename: a broken write leaves the last good file."""
        if self.path is None:
            return
        with whole_file(self.path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, fingerprint=self.fingerprint, **vars(found))
        self._saved = time.monotonic()


def _check(found: Measured, nothing: Measured) -> None:
    """Raises ValueError where what was read could not have been measured."""
    for name in ("effect", "baselines"):
        read, like = getattr(found, name), getattr(nothing, name)
        if read.shape != like.shape or read.dtype != like.dtype or np.isinf(read).any():
            raise ValueError(f"{name} has shape {read.shape} of {read.dtype}, not finite numbers of shape {like.shape}")
    if found.engine not in get_args(EngineName) or not 0 <= found.noise < np.inf:
        raise ValueError(f"engine {found.engine[:80]!r} with noise {found.noise:g}")
