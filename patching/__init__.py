"""Where it lives: exact activation patching, and ablation with its price."""

from .ablation import Ablator, ablate, mean_activations
from .circuits import find_set, rank, smallest_set
from .components import Component, matched_random_sets
from .metrics import KLDivergence, LogitDifference, LogProbability, Metric, Probability
from .pairs import Pairs
from .result import SweepResult
from .sweep import sweep

__all__ = [
    "Ablator",
    "Component",
    "KLDivergence",
    "LogProbability",
    "LogitDifference",
    "Metric",
    "Pairs",
    "Probability",
    "SweepResult",
    "ablate",
    "find_set",
    "matched_random_sets",
    "mean_activations",
    "rank",
    "smallest_set",
    "sweep",
]
