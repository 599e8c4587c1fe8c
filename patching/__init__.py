"""Where it lives: exact activation patching, its approximations, circuits, and ablation with its price."""

from .ablation import Ablator, ablate, mean_activations
from .ablation_set import find_set, rank, smallest_set
from .agreement import Agreement, verify
from .attributing import Attribution, attribute, attribute_edges
from .attribution import node_scores
from .cells import patch_cells
from .circuits import Circuit, Edge, Kept, KeptEdges, Place, Story, find_circuit, tell
from .components import Component, matched_random_sets
from .locating import Located, locate
from .metrics import KLDivergence, LogitDifference, LogProbability, Metric, Probability
from .pairs import Pairs
from .paths import path_patch, path_sweep
from .result import SweepResult
from .sweep import sweep

__all__ = [
    "Ablator",
    "Agreement",
    "Attribution",
    "Circuit",
    "Component",
    "Edge",
    "KLDivergence",
    "Kept",
    "KeptEdges",
    "Located",
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
    "locate",
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
