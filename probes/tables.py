"""Parquet tables that somebody else may have made: their columns are known beforehand, and so is how much they may unfold to.

A few bytes can stand for billions of equal rows, or for as many copies of one long text, and no compression is needed for it.
So rows are counted before any is read, and texts before they are copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..reading import regular
from .footer import n_rows

TEXT = pa.dictionary(pa.int32(), pa.string())
_TIMES, _FEW = 100, 64 * 2**20  # bytes of texts for each byte of the file, where that is more than a few


def read_table(path: Path, kinds: pa.Schema, columns: Sequence[str] | None = None, *, most: int) -> pa.Table:
    """Some columns, or all of them, of a table with these columns and at most so many rows.

    Args:
        kinds: Name and type of every column; texts are `TEXT`, whether the file has them so or one by one.

    Raises:
        OSError, ValueError, ArrowException: It is another table, or none.
    """
    if (rows := n_rows(regular(path))) > most:
        raise ValueError(f"claims {rows} rows, where at most {most} can be")
    texts = [field.name for field in kinds if field.type == TEXT]
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        _check(file.schema_arrow, kinds)
        table = file.read(None if columns is None else list(columns))
    if table.num_rows != rows:
        raise ValueError(f"has {table.num_rows} rows and says {rows}")
    table.validate(full=True)  # what is no UTF-8 is found here, not where it is read
    size = max(_FEW, _TIMES * path.stat().st_size)
    for name in table.column_names:
        if name in texts and (unfolded := _length(table[name])) > size:
            raise ValueError(f"the texts of {name} unfold to {unfolded} bytes")
    return table


def _check(found: pa.Schema, kinds: pa.Schema) -> None:
    if found.names != kinds.names:
        raise ValueError(f"expected the columns {', '.join(kinds.names)}")
    for field in kinds:
        if (kind := found.field(field.name).type) != field.type:
            raise ValueError(f"{field.name} is of type {kind}, not {field.type}")


def _length(texts: pa.ChunkedArray) -> int:
    """Bytes of all of them together, each counted as often as it stands there."""
    total = 0
    for chunk in texts.chunks:
        of_each = pc.fill_null(pc.binary_length(chunk.dictionary), 0).take(chunk.indices)  # pyright: ignore[reportAttributeAccessIssue]
        total += pc.sum(pc.cast(of_each, pa.int64())).as_py() or 0  # pyright: ignore[reportAttributeAccessIssue]
    return total
