"""Arrays of an `.npz` file that somebody else may have made: none is larger than what lies in the file."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np

from ..reading import regular
from ..untrusted import shortened


def read_arrays(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """The arrays of these names, as `np.savez` wrote them; there may be no others.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds something else.
    """
    size = regular(path).stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sorted(member.filename for member in members) != sorted(f"{name}.npy" for name in names):
                raise ValueError(f"expected the arrays {', '.join(sorted(names))}")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("its arrays are compressed")
            if sum(member.file_size for member in members) > size:
                raise ValueError("its arrays claim more bytes than the file has")
            return {member.filename.removesuffix(".npy"): _array(archive.read(member)) for member in members}
    except OSError:
        raise
    except Exception as error:  # zipfile and numpy's header raise half a dozen kinds, and few are written down
        raise ValueError(f"{type(error).__name__}: {shortened(str(error), 200)}") from None


def _array(content: bytes) -> np.ndarray:
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array of another version")
    shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
    # Not `np.load`: it allocates what the header claims, and looks for the numbers afterwards.
    if dtype.kind not in "fiuU" or min(shape, default=0) < 0:
        raise ValueError(f"an array of {dtype} and shape {shape}")
    if math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"an array of shape {shape} has other than {len(content) - file.tell()} bytes")
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if by_column else "C").copy()
