"""Many cells at once: a cell is one layer and position, and every cell holds the same prompts.

What is here checks a grid of cells, standardises it and cuts it to fit in memory. It knows nothing about probes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

WORKING_MEMORY = 2**25  # bytes that a pass may take beside its input: more is slower, for it leaves the cache


def as_cells(X: np.ndarray | Tensor, y: np.ndarray | Tensor | None = None) -> Tensor:
    """`X` as a tensor of at least single precision, checked to be finite and as long as `y`.

    Raises:
        ValueError: A cell holds NaN or infinity (it is named), or `y` has another length.
    """
    X = torch.as_tensor(X)
    if X.ndim < 3:
        raise ValueError(f"X has shape {tuple(X.shape)}: expected (cell, prompt, …, d)")
    if y is not None and len(y) != X.shape[1]:
        raise ValueError(f"X has {X.shape[1]} prompts and y has {len(y)}: they must be as many")
    if not X.dtype.is_floating_point or X.dtype.itemsize < 4:
        X = X.float()
    # A sum is a third of the price of isfinite: no NaN or infinity leaves it finite.
    if len(bad := (~torch.isfinite(X.flatten(1).sum(1))).nonzero()) and not torch.isfinite(X).all():
        raise ValueError(f"cell {int(bad[0])} holds NaN or infinity: collect it again, or drop those prompts")
    return X


def as_labels(y: np.ndarray | Tensor) -> Bool[Tensor, "prompt"]:
    """`y` as booleans with both classes present.

    Raises:
        ValueError: `y` is not boolean, or all of one class.
    """
    y = torch.as_tensor(y)
    if y.dtype != torch.bool or y.ndim != 1:
        raise ValueError(f"y is {y.dtype} of shape {tuple(y.shape)}: expected one boolean per prompt, True if positive")
    if y.all() or not y.any():
        raise ValueError(f"y holds one class only, {len(y)} × {bool(y.all())}: a probe needs prompts of two classes")
    return y


def same_features(X_fit: Tensor, X: Tensor) -> None:
    """Refuse a grid to score that has other cells or features than the one to fit."""
    if (len(X_fit), X_fit.shape[-1]) != (len(X), X.shape[-1]):
        raise ValueError(
            f"X has {len(X)} cells of {X.shape[-1]} features and X_fit {len(X_fit)} of {X_fit.shape[-1]}: "
            "they must be the same cells"
        )


def chunks(cells: int, bytes_each: int) -> Iterator[slice]:
    """Runs of cells of which each stays within `WORKING_MEMORY`."""
    step = max(1, WORKING_MEMORY // max(1, bytes_each))
    return (slice(start, start + step) for start in range(0, cells, step))


def standardise(
    X: Float[Tensor, "cell prompt d"],
) -> tuple[Float[Tensor, "cell prompt d"], Float[Tensor, "cell 1 d"], Float[Tensor, "cell 1 d"]]:
    """`X` with mean 0 and variance 1 by feature, and the mean and scale that did it. A constant feature becomes 0."""
    mean = X.mean(1, keepdim=True)
    X = X - mean
    scale = X.square().mean(1, keepdim=True).sqrt()
    # The mean of equal numbers may be off by rounding, which must not be blown up to variance 1.
    constant = scale <= 16 * torch.finfo(X.dtype).eps * mean.abs()
    return X.div_(scale.masked_fill_(constant, 1)).masked_fill_(constant, 0), mean, scale
