"""Where it lives: exact activation patching, and ablation with its price."""

from .ablation import Ablator, ablate, mean_activations
from .attribution import attribute
from .circuits import find_set, rank, smallest_set
from .components import Component, matched_random_sets
from .edges import attribute_edges, node_scores
from .metrics import LogitDifference
from .pairs import Pairs
from .paths import path_patch, path_sweep
from .result import SweepResult
from .sweep import sweep

__all__ = [
    "Ablator",
    "Component",
    "LogitDifference",
    "Pairs",
    "SweepResult",
    "ablate",
    "attribute",
    "attribute_edges",
    "find_set",
    "matched_random_sets",
    "mean_activations",
    "node_scores",
    "path_patch",
    "path_sweep",
    "rank",
    "smallest_set",
    "sweep",
]
