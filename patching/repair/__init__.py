"""Is it gone? Repairs: an intervention priced, written into the weights, and attacked again."""

from .attack import Budget, attack
from .attempts import Attacks, Attempt
from .surgery import NotInWeights, operate
from .tuning import good_answers, tune

__all__ = ["Attacks", "Attempt", "Budget", "NotInWeights", "attack", "good_answers", "operate", "tune"]
