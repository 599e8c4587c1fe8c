"""The header of a safetensors file, held against the file and against itself."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from .documents import parsed

LARGEST = 32 * 2**20  # bytes of a header: some 200,000 tensors
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
METADATA = "__metadata__"


def shapes_of(file: Path) -> dict[str, tuple[int, ...]]:
    """Tensor shapes from a header in which every tensor fills its own bytes, and all of them together the file.

    Raises:
        CheckpointError: The file is not whole, or its header is not such a table.
    """
    size = file.stat().st_size
    broken = f"{file}: not a whole safetensors file"
    if size < 8:
        raise CheckpointError(f"{broken} ({size} bytes); copy it again")
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > min(size - 8, LARGEST):
            raise CheckpointError(f"{broken} (its header claims {length} bytes of {size}); copy it again")
        header = parsed(stream.read(length), f"{broken}: its header")
    if not isinstance(header.pop(METADATA, {}), dict):
        raise CheckpointError(f"{broken} ({METADATA} is no table); export the model again")
    places = []
    for name, entry in header.items():
        start, stop = _place(entry, f"{broken} (tensor {name[:80]!r}")
        places.append((start, stop, name))
    end = 0
    for start, stop, name in sorted(places):
        if start != end:
            raise CheckpointError(
                f"{broken} (tensor {name[:80]!r} {'overlaps another' if start < end else 'leaves a hole before it'}); "
                "export the model again"
            )
        end = stop
    if 8 + length + end != size:
        raise CheckpointError(f"{broken} (its header describes {8 + length + end} bytes, it has {size}); copy it again")
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def _place(entry: Any, said: str) -> tuple[int, int]:
    """First byte and the one after the last."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{said} is not described by dtype, shape and data_offsets); export the model again")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in BITS:
        raise CheckpointError(f"{said} has a dtype that is not known); export the model again")
    if not (_extents(shape) and _extents(offsets) and len(offsets) == 2 and len(shape) <= 8):
        raise CheckpointError(f"{said} has a shape or place that is none); export the model again")
    bits = BITS[entry["dtype"]]
    for extent in shape:
        bits *= extent
    start, stop = offsets
    if bits % 8 or start > stop or bits // 8 != stop - start:
        raise CheckpointError(f"{said} does not fit its place); export the model again")
    return start, stop


def _extents(value: Any) -> bool:
    return isinstance(value, list) and all(type(x) is int and 0 <= x < 2**63 for x in value)
