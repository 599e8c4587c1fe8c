"""Is it gone? Repairs: an intervention priced, written into the weights, and attacked again."""

from .attack import Budget, attack
from .attempts import Attacks, Attempt
from .directions import written_directions
from .erasing import erase
from .export import Exported, RepairCard, export
from .frontier import frontier
from .points import Frontier, Point
from .price import Draw, Judge, Price, Pricer
from .repairing import Repaired, repair, target_of_directions, targets_of_circuit
from .self_repair import SelfRepair, self_repair
from .surgery import NotInWeights, operate
from .tuning import good_answers, tune

__all__ = [
    "Attacks",
    "Attempt",
    "Budget",
    "Draw",
    "Exported",
    "Frontier",
    "Judge",
    "NotInWeights",
    "Point",
    "Price",
    "Pricer",
    "RepairCard",
    "Repaired",
    "SelfRepair",
    "attack",
    "erase",
    "export",
    "frontier",
    "good_answers",
    "operate",
    "repair",
    "self_repair",
    "target_of_directions",
    "targets_of_circuit",
    "tune",
    "written_directions",
]
