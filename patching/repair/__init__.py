"""Is it gone? Repairs: an intervention priced, written into the weights, and attacked again."""

from .export import Exported, RepairCard, export
from .surgery import NotInWeights, operate

__all__ = ["Exported", "NotInWeights", "RepairCard", "export", "operate"]
