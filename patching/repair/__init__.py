"""Is it gone? Repairs: an intervention priced, written into the weights, and attacked again."""

from .surgery import NotInWeights, operate
from .tuning import good_answers, tune

__all__ = ["NotInWeights", "good_answers", "operate", "tune"]
