"""Mass-mean probing: the difference of means, tilted by the plain within-class covariance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .covariance import solve_positive
from .linear import LinearProbe, class_means


class MassMean(LinearProbe):
    """Score by Σ⁺(μ₊ - μ₋), where Σ is the covariance of all prompts, each less its own class's mean.

    This is the paper's form for data like those that were fitted, σ(θᵀΣ⁻¹x); its plain form, σ(θᵀx), ranks as
    `MeanDifference` does. The paper centres its data; here 0 lies half-way between the means. It is LDA without
    shrinkage: with many prompts per feature the two agree. With few, Σ is a poor estimate, and with more features than
    prompts the pseudo-inverse drops whatever of the difference lies where no prompt varied: prefer `LinearDiscriminant`.

    Source: Marks and Tegmark, "The geometry of truth" (2023), the section on mass-mean probing.
    """

    def solve(
        self,
        X: Float[Tensor, "cell prompt d"],
        y: Bool[Tensor, "prompt"],
        groups: Sequence | None = None,  # noqa: ARG002
    ) -> tuple[Float[Tensor, "cell d"], Float[Tensor, "cell"]]:
        X = X.double()  # nothing is shrunk, so that single precision would decide what is singular
        negative, positive = class_means(X, y)
        difference = (positive - negative)[..., None]
        rows = X - torch.stack([negative, positive], 1)[:, y.long()]
        if rows.shape[2] <= rows.shape[1]:
            coef = len(y) * solve_positive(rows.mT @ rows, difference)[..., 0]
        else:
            coef = len(y) * _wide(rows, y, difference)
        return coef, -(coef * (positive + negative)).sum(1) / 2


def _wide(
    rows: Float[Tensor, "cell prompt d"], y: Bool[Tensor, "prompt"], difference: Float[Tensor, "cell d 1"]
) -> Float[Tensor, "cell d"]:
    """(RᵀR)⁺θ = Rᵀ(RRᵀ)⁺(RRᵀ)⁺Rθ, never larger than prompts².

    RRᵀ is singular along each class's indicator, where Rθ is 0: filled in there, Cholesky may solve it.
    """
    gram = rows @ rows.mT
    same = (y[:, None] == y[None]).to(rows.dtype)
    scale = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    gram += scale * same / same.sum(1)
    once = solve_positive(gram, rows @ difference)
    return (rows.mT @ solve_positive(gram, once))[..., 0]
