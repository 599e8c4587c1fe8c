"""Parts of a model put at other values, while it runs: what is taken hold of, what it is put at, and the running model."""

from .intervention import Intervention, Kind
from .resting import Resting
from .targets import Neurons, Subspace, Target

__all__ = ["Intervention", "Kind", "Neurons", "Resting", "Subspace", "Target"]
