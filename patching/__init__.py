"""Where it lives: exact activation patching, its approximations, circuits, interventions, and repairs with their price."""

from .ablation_set import find_set, rank, smallest_set
from .agreement import Agreement, verify
from .attributing import Attribution, attribute, attribute_edges
from .attribution import node_scores
from .cells import patch_cells
from .circuits import Circuit, Edge, Kept, KeptEdges, Place, Story, find_circuit, tell
from .components import Component, matched_random_sets
from .interventions import Intervention, Neurons, Resting, Subspace
from .locating import Located, locate
from .metrics import KLDivergence, LogitDifference, LogProbability, Metric, Probability
from .pairs import Pairs
from .parting import where_answers_part
from .paths import path_patch, path_sweep
from .repair import Frontier, Price, Pricer, SelfRepair, frontier, self_repair
from .result import SweepResult
from .sweep import sweep

__all__ = [
    "Agreement",
    "Attribution",
    "Circuit",
    "Component",
    "Edge",
    "Frontier",
    "Intervention",
    "KLDivergence",
    "Kept",
    "KeptEdges",
    "Located",
    "LogProbability",
    "LogitDifference",
    "Metric",
    "Neurons",
    "Pairs",
    "Place",
    "Price",
    "Pricer",
    "Probability",
    "Resting",
    "SelfRepair",
    "Story",
    "Subspace",
    "SweepResult",
    "attribute",
    "attribute_edges",
    "find_circuit",
    "find_set",
    "frontier",
    "locate",
    "matched_random_sets",
    "node_scores",
    "patch_cells",
    "path_patch",
    "path_sweep",
    "rank",
    "self_repair",
    "smallest_set",
    "sweep",
    "tell",
    "verify",
    "where_answers_part",
]
