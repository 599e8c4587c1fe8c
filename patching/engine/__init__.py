"""The engine behind `sweep`: two unpatched runs, and every patched run that could differ from them.

`Wavefront` is the fast engine, `PerLayer` the slow one for architectures that cannot be taken apart; both give the
logits of `Cells`. `Block` sets either up for pairs of like length. `IndependentCell` is one cell without either, to hold
them against. Nothing here knows metrics or results. All of it works on views of the model: no hooks, no global state, so
two sweeps can share a model in two threads.
"""

from .attention import CannotSplit
from .block import Block, Engine, check, logits
from .cells import Cells, joined
from .head import head_of
from .independent import IndependentCell, unpatched
from .precision import at_least_single
from .sites import INSIDE_ATTENTION, By, Site, axes, check_site, heads
from .split import SplitModel

__all__ = [
    "INSIDE_ATTENTION",
    "Block",
    "By",
    "CannotSplit",
    "Cells",
    "Engine",
    "IndependentCell",
    "Site",
    "SplitModel",
    "at_least_single",
    "axes",
    "check",
    "check_site",
    "head_of",
    "heads",
    "joined",
    "logits",
    "unpatched",
]
