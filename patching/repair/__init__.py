"""Is it gone? Repairs: an intervention priced, written into the weights, and attacked again."""

from .price import Judge, Price, Pricer
from .self_repair import SelfRepair, self_repair
from .surgery import NotInWeights, operate

__all__ = [
    "Judge",
    "NotInWeights",
    "Price",
    "Pricer",
    "SelfRepair",
    "operate",
    "self_repair",
]
