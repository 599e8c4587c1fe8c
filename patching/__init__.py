"""Where it lives: exact activation patching, its approximations, circuits, and ablation with its price."""

from .ablation import Ablator, ablate, mean_activations
from .agreement import Agreement, verify
from .attribution import attribute
from .cells import patch_cells
from .circuit import Circuit
from .circuits import find_set, rank, smallest_set
from .components import Component, matched_random_sets
from .edges import attribute_edges, node_scores
from .kept import Kept
from .kept_edges import KeptEdges
from .metrics import KLDivergence, LogitDifference, LogProbability, Metric, Probability
from .pairs import Pairs
from .paths import path_patch, path_sweep
from .places import Edge, Place
from .result import SweepResult
from .search import find_circuit
from .story import Story, tell
from .sweep import sweep

__all__ = [
    "Ablator",
    "Agreement",
    "Circuit",
    "Component",
    "Edge",
    "KLDivergence",
    "Kept",
    "KeptEdges",
    "LogProbability",
    "LogitDifference",
    "Metric",
    "Pairs",
    "Place",
    "Probability",
    "Story",
    "SweepResult",
    "ablate",
    "attribute",
    "attribute_edges",
    "find_circuit",
    "find_set",
    "matched_random_sets",
    "mean_activations",
    "node_scores",
    "patch_cells",
    "path_patch",
    "path_sweep",
    "rank",
    "smallest_set",
    "sweep",
    "tell",
    "verify",
]
