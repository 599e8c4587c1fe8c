"""What the model knows: activations, probes, and the controls that decide whether they mean anything."""

from .activations import Activations, collect
from .estimators import PROBES, MeanDifference
from .sweep import ProbeRow, ProbeSweep, sweep

__all__ = ["PROBES", "Activations", "MeanDifference", "ProbeRow", "ProbeSweep", "collect", "sweep"]
