"""Is it gone? Repairs: an intervention priced, written into the weights, and attacked again."""

from .export import Exported, RepairCard, export
from .frontier import Frontier, Point, frontier
from .price import Judge, Price, Pricer
from .self_repair import SelfRepair, self_repair
from .surgery import NotInWeights, operate

__all__ = [
    "Exported",
    "Frontier",
    "Judge",
    "NotInWeights",
    "Point",
    "Price",
    "Pricer",
    "RepairCard",
    "SelfRepair",
    "export",
    "frontier",
    "operate",
    "self_repair",
]
