"""Where it lives: exact activation patching, and ablation with its price."""

from .ablation import Ablator, ablate, mean_activations
from .circuit import Circuit
from .circuits import find_set, rank, smallest_set
from .components import Component, matched_random_sets
from .kept import Kept, Place
from .metrics import LogitDifference
from .pairs import Pairs
from .result import SweepResult
from .search import find_circuit
from .sweep import sweep

__all__ = [
    "Ablator",
    "Circuit",
    "Component",
    "Kept",
    "LogitDifference",
    "Pairs",
    "Place",
    "SweepResult",
    "ablate",
    "find_circuit",
    "find_set",
    "matched_random_sets",
    "mean_activations",
    "rank",
    "smallest_set",
    "sweep",
]
