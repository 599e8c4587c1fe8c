"""Linear discriminant analysis: the difference of means, whitened by what varies within the classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .cells import standardise
from .covariance import ledoit_wolf, solve_rows
from .linear import LinearProbe, class_means


class LinearDiscriminant(LinearProbe):
    """Score by Σ⁻¹(μ₊ - μ₋), where Σ is the within-class covariance, shrunk for each class by Ledoit and Wolf.

    Equal to `sklearn.discriminant_analysis.LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")`. Prefer it to
    the mean difference where features vary strongly together, as in a residual stream, and to logistic regression where
    prompts are few. It takes both classes to vary in the same way, and is upset by outliers. Where neither class varies
    at all it is the difference of means (scikit-learn then returns 0).

    Source: Hastie et al., "The elements of statistical learning", section 4.3; Ledoit and Wolf (2004).
    """

    def solve(
        self,
        X: Float[Tensor, "cell prompt d"],
        y: Bool[Tensor, "prompt"],
        groups: Sequence | None = None,  # noqa: ARG002
    ) -> tuple[Float[Tensor, "cell d"], Float[Tensor, "cell"]]:
        negative, positive = class_means(X, y)
        rows, diagonal = [], torch.zeros_like(negative)
        for members in (~y, y):
            part, _, scale = standardise(X[:, members])  # so that the shrinkage has no favourite feature
            shrinkage, variance = ledoit_wolf(part)
            rows.append(part.mul_(scale * ((1 - shrinkage) / len(y)).sqrt()[:, None, None]))
            diagonal += members.sum() / len(y) * (shrinkage * variance)[:, None] * scale[:, 0].square()
        coef = solve_rows(diagonal, torch.cat(rows, 1), (positive - negative)[..., None])[..., 0]
        prior = torch.log(y.sum() / (~y).sum()).to(X.dtype)
        return coef, prior - (coef * (positive + negative)).sum(1) / 2
