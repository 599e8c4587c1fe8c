"""Labelled arrays as netCDF files of the classic kind, and back.

Not netCDF 4: the library under it, HDF5, follows links out of the file, unfolds a few bytes into terabytes, and can be kept
busy for ever by a broken file. The classic kind is read in Python, and what it says of its arrays is held against the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr
from scipy.io import netcdf_file

from ..reading import regular
from ..untrusted import shortened

TYPES = ("d", "i", "c")  # what `to_netcdf` makes of floats, whole numbers and texts
# What it says of an array besides.
_SAID: Mapping[str, tuple[object, ...]] = {"coordinates": (b"label",), "_Encoding": (b"utf-8",)}


def to_netcdf(data: xr.Dataset) -> bytes:
    """A dataset of floats, whole numbers and texts as a file."""
    return bytes(data.to_netcdf(engine="scipy"))


def read_netcdf(path: Path) -> xr.Dataset:
    """What `to_netcdf` made.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds something else.
    """
    regular(path)
    try:
        _check(path)
        with xr.open_dataset(path, engine="scipy", decode_times=False, decode_timedelta=False) as opened:
            return opened.load()
    except OSError:
        raise
    except Exception as error:  # what the two libraries raise on a file that is none is not written down anywhere
        raise ValueError(f"{type(error).__name__}: {shortened(str(error), 200)}") from None


def _check(path: Path) -> None:
    """See that arrays are plain, lie in the file and take no more bytes than it has, so that none can be told twice.

    Raises:
        ValueError: They do not.
    """
    with netcdf_file(path, mmap=True) as file:  # mapped: nothing is copied before it is looked at
        lengths, told = dict(file.dimensions), {name: _Told.of(one) for name, one in file.variables.items()}
    left = path.stat().st_size
    for name, one in told.items():
        left -= one.n_bytes
        if not one.axes or not all(
            lengths[axis] for axis in one.axes
        ):  # the axis without a length grows record by record
            raise ValueError(f"{name} has no shape of its own")
        if left < 0 or min(one.shape) < 1 or one.there != one.shape:
            raise ValueError(f"{name} of shape {one.shape} does not fit the file")
        if one.type not in TYPES:
            raise ValueError(f"{name} is of type {one.type}")
        for field, value in one.said.items():
            filled = field == "_FillValue" and isinstance(value, float) and math.isnan(value)
            if not filled and value not in _SAID.get(field, ()):
                raise ValueError(f"{name} has a field {field} that sweeps have not")


@dataclass(frozen=True)
class _Told:
    """What a file says of an array, and the shape that is `there`."""

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    there: tuple[int, ...]
    type: str
    n_bytes: int
    said: Mapping[str, object]

    @classmethod
    def of(cls, array: Any) -> _Told:
        n_bytes = math.prod(array.shape) * array.itemsize() if None not in array.shape else 0
        said = dict(vars(array)["_attributes"])
        return cls(array.dimensions, array.shape, array.data.shape, array.typecode(), n_bytes, said)
