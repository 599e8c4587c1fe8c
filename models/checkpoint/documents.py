"""JSON of a checkpoint, in bounded time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ... import reading
from ...errors import CheckpointError
from ...reading import LARGEST


def read_json(path: Path, *, largest: int = LARGEST) -> dict[str, Any]:
    """A JSON object from a file; one that names a field twice, or holds NaN, says two things to two readers and is refused.

    Raises:
        CheckpointError: The file is missing, larger than `largest` bytes, or holds something else.
    """
    try:
        content = reading.read_bytes(path, largest=largest)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: no {path.name}; is this a Hugging Face model folder?") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}: export the model again") from None
    return parsed(content, str(path))


def parsed(content: bytes, name: str) -> dict[str, Any]:
    """The JSON object that `content` holds; `name` says in errors whose it is.

    Raises:
        CheckpointError: It holds none.
    """
    try:
        value = reading.parsed(content)
    except ValueError as error:
        raise CheckpointError(f"{name}: cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{name}: expected a JSON object")
    return value
