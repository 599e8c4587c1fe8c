"""Is it gone? Repairs: an intervention priced, written into the weights, and attacked again."""

from .surgery import NotInWeights, operate

__all__ = ["NotInWeights", "operate"]
