"""What a Parquet file says of itself, read in Python before Arrow is handed the file.

Arrow reads broken files in good order, but asked what a file says of its columns it ends the process over some of them, and
it follows no limit of memory. The footer is a struct of Thrift's compact protocol: `github.com/apache/parquet-format`,
`parquet.thrift`.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

LARGEST = 16 * 2**20  # bytes of a footer
CODECS = {
    0: "UNCOMPRESSED",
    1: "SNAPPY",
}  # what `write_table` writes; such data unfold to some twenty times what they take
_DEEPEST = 12  # of a sound one: 7
# Numbers of the fields, by struct.
_NUM_ROWS, _GROUPS = 3, 4
_COLUMNS, _GROUP_ROWS = 1, 3
_OTHER_FILE, _META_DATA, _CODEC = 1, 3, 4


def n_rows(path: Path) -> int:
    """Rows of a file that lies by itself and is compressed in the usual way, or not at all.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no such file.
    """
    try:
        about = _Compact(_footer(path)).struct()
        groups = about[_GROUPS]
        for column in (column for group in groups for column in group[_COLUMNS]):
            if _OTHER_FILE in column:
                raise ValueError("a column lies in another file")
            if (codec := column[_META_DATA][_CODEC]) not in CODECS:
                raise ValueError(f"compressed in way {codec}, not as {' or '.join(CODECS.values())}")
        total = sum(group[_GROUP_ROWS] for group in groups)
    except (IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(f"the footer is damaged ({type(error).__name__})") from None
    if about[_NUM_ROWS] != total or any(group[_GROUP_ROWS] < 0 for group in groups):
        raise ValueError(f"says that it has {about[_NUM_ROWS]} rows, but its parts have {total}")
    return total


def _footer(path: Path) -> bytes:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < 12:
            raise ValueError("not a Parquet file")
        file.seek(-8, os.SEEK_END)
        length, magic = struct.unpack("<I4s", file.read(8))
        if magic != b"PAR1" or length > min(size - 12, LARGEST):
            raise ValueError("not a Parquet file")
        file.seek(-8 - length, os.SEEK_END)
        return file.read(length)


class _Compact:
    """Reads values one after the other; whatever they claim, each takes a byte at least, and the bytes end."""

    def __init__(self, content: bytes):
        self._content, self._at, self._depth = content, 0, 0

    def struct(self) -> dict[int, Any]:
        """Values by the number of their field."""
        found: dict[int, Any] = {}
        number = 0
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ValueError("the footer is nested without end")
        while header := self._byte():
            number = number + (header >> 4) if header >> 4 else self._whole()
            if number in found:
                raise ValueError(f"field {number} stands in the footer twice")
            kind = header & 15
            found[number] = kind == 1 if kind in (1, 2) else self._value(kind)
        self._depth -= 1
        return found

    def _value(self, kind: int) -> Any:
        if kind in (1, 2, 3):
            return self._byte()
        if kind in (4, 5, 6):
            return self._whole()
        if kind in (7, 8):
            return self._bytes(8 if kind == 7 else self._varint())
        if kind in (9, 10):
            header = self._byte()
            size = header >> 4 if header >> 4 < 15 else self._varint()
            return [self._element(header & 15) for _ in range(size)]
        if kind == 12:
            return self.struct()
        raise ValueError(f"kind {kind} has no place in a footer")

    def _element(self, kind: int) -> Any:
        if kind in (9, 10):
            raise ValueError("lists of lists have no place in a footer")
        return self._value(kind)

    def _whole(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            if (shift := shift + 7) > 63:
                raise ValueError("a number has more than 64 bits")

    def _bytes(self, n: int) -> bytes:
        if n > len(self._content) - self._at:
            raise ValueError("the footer ends in the middle of a value")
        self._at += n
        return self._content[self._at - n : self._at]

    def _byte(self) -> int:
        self._at += 1
        return self._content[self._at - 1]
