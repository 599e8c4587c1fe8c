"""Whether anything is there, the trigger unknown: many models, on one machine or many. Names are imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import ScanConfig
    from .many.running import Scanned, scan_many
    from .many.units import Unit, checkpoints_among, units_of

_HOME = {
    "ScanConfig": "config",
    "Scanned": "many.running",
    "Unit": "many.units",
    "checkpoints_among": "many.units",
    "scan_many": "many.running",
    "units_of": "many.units",
}

__all__ = ["ScanConfig", "Scanned", "Unit", "checkpoints_among", "scan_many", "units_of"]


def __getattr__(name: str):
    if name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
