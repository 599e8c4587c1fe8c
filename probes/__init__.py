"""What the model knows: activations, probes, and the controls that decide whether they mean anything."""

from .activations import Activations, collect, collect_many
from .causal import CausalSpecificity, causal_specificity
from .contrast_pairs import CONTRAST_PAIRS, ContrastPair
from .defection import Defection, defection_probe
from .estimators import POOLED, PROBES, MeanDifference
from .reader import SITES
from .result import Cell, ProbeRow, ProbeSweep
from .store import Store
from .sweep import sweep
from .to_disk import collect_to_disk, size_on_disk

__all__ = [
    "CONTRAST_PAIRS",
    "POOLED",
    "PROBES",
    "SITES",
    "Activations",
    "CausalSpecificity",
    "Cell",
    "ContrastPair",
    "Defection",
    "MeanDifference",
    "ProbeRow",
    "ProbeSweep",
    "Store",
    "causal_specificity",
    "collect",
    "collect_many",
    "collect_to_disk",
    "defection_probe",
    "size_on_disk",
    "sweep",
]
