"""In which precision logits are compared and measured."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_single(logits: Tensor) -> Tensor:
    """Half precision as single, double as it is."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
