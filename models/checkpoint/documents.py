"""JSON from somebody else, in bounded time and memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from ...errors import CheckpointError

LARGEST = 4 * 2**20  # bytes of a document that is nothing special


def read_json(path: Path, *, largest: int = LARGEST) -> dict[str, Any]:
    """A JSON object from a file; one that names a field twice, or holds NaN, says two things to two readers and is refused.

    Raises:
        CheckpointError: The file is missing, larger than `largest` bytes, or holds something else.
    """
    try:
        size = path.stat().st_size
        if size > largest:
            raise CheckpointError(
                f"{path}: has {size} bytes, and more than {largest} are not read: export the model again"
            )
        return parsed(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: no {path.name}; is this a Hugging Face model folder?") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None


def parsed(content: bytes, name: str) -> dict[str, Any]:
    """The JSON object that `content` holds; `name` says in errors whose it is.

    Raises:
        CheckpointError: It holds none.
    """
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name}: cannot be read as JSON ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{name}: expected a JSON object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1) if len(names) < 1000 else "a name"
        raise ValueError(f"{twice[:80]!r} stands there twice")
    return found


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
