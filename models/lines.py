"""Records of a file, one on each line: read whole, or left where they are because memory has no room for all."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar, overload

from ..errors import PromptError
from ..reading import regular

T = TypeVar("T")
Parse = Callable[[str, str], T]  # a line, and what errors call it


def read_lines(path: Path, parse: Parse[T]) -> Iterator[T]:
    """A record of each line that is not blank.

    Raises:
        PromptError: The file cannot be read as UTF-8 text. What `parse` raises is passed on.
    """
    try:
        with path.open("rb") as file:
            for _, record in _placed(file, path, parse):
                yield record
    except OSError as error:
        raise _unreadable(path, error) from None


class Lines(Sequence[T], Generic[T]):
    """The same records, each read where it is asked for. Of each only its place is held, in eight bytes.

    The file is gone through once, so what is wrong with it is said at once, and stays open. Threads may share one; another
    process that is sent one opens the file by its path.

    Raises:
        PromptError: As `read_lines`, or it is a pipe, which is read only once; later, where the file has been changed.
    """

    def __init__(self, path: Path, parse: Parse[T]):
        self._path, self._parse = path, parse
        try:
            self._file = regular(path).open("rb")
            self._state = self._now()
            self._places = array("q", (start for start, _ in _placed(self._file, path, parse)))
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None
        self._places.append(self._state[0])

    def __len__(self) -> int:
        return len(self._places) - 1

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(len(self))[index])
        number = range(len(self))[index]
        start, end = self._places[number : number + 2]
        try:
            line, *_blank = os.pread(self._file.fileno(), end - start, start).split(b"\n", 1)
        except OSError as error:
            raise _unreadable(self._path, error) from None
        if self._now() != self._state:
            raise PromptError(f"{self._path}: was changed while it was in use: let nobody write it, and start again")
        return self._parse(line.decode("utf-8"), f"{self._path}, record {number + 1}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(ours == theirs for ours, theirs in zip(self, other, strict=True))

    def __reduce__(self):
        return Lines, (self._path, self._parse)

    def __repr__(self) -> str:
        return f"Lines({self._path}, {len(self)} records)"

    def _now(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns


def _placed(file: BinaryIO, path: Path, parse: Parse[T]) -> Iterator[tuple[int, T]]:
    """Each record, and the byte at which its line begins."""
    start = 0
    for number, line in enumerate(file, 1):  # by line feeds alone: texts may hold other separators
        where = f"{path}, line {number}"
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise PromptError(f"{where}: no UTF-8 text ({error.reason} at byte {error.start + 1})") from None
        if text.strip():
            yield start, parse(text, where)
        start += len(line)


def _unreadable(path: Path, error: OSError | ValueError) -> PromptError:
    return PromptError(f"{path}: cannot be read ({error})")
