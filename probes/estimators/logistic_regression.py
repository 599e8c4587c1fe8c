"""Logistic regression on standardised features, solved for all cells together.

Every cell descends by nonlinear conjugate gradients, preconditioned by an inverse Hessian that is renewed every few
steps, with a search along each direction: between renewals this needs only products of a matrix with a vector, where
Newton's method would form and factor a Hessian each time. Where features outnumber prompts, the direction is sought as
a sum of prompts, and the Hessian is prompts × prompts. A cell that has converged stands still, so that its result does
not depend on its neighbours.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from .cells import standardise
from .linear import LinearProbe

RENEW = 24  # steps on one Hessian, which costs as much as about ten of them


class LogisticRegressionProbe(LinearProbe):
    """Score by the log-odds of an L2-regularised logistic regression on standardised features.

    The objective is that of `make_pipeline(StandardScaler(), LogisticRegression(C=C))`, and so is the optimum; at its
    default tolerance scikit-learn stops further from it. The strongest of the linear probes where prompts are many. With
    more features than prompts it separates any labelling of them: read its AUROC on held-out prompts only, and hold it
    against a control. Its direction is not the one to ablate or to steer with: features that go together share it
    arbitrarily.

    Args:
        C: Inverse of the penalty. 1 as usual; a stronger prior would hide a weakly written trigger in a twin, and so
            flatter specificity.
        tol: How far, in nats summed over prompts, a cell may end above its minimum, as its last Hessian foretells: a
            few hundred times further where classes lie so far apart that the fit is nearly perfect.
        steps: At most so many, then it stops with a `ConvergenceWarning`.

    Source: Alain and Bengio, "Understanding intermediate layers using linear classifier probes" (2016).
    """

    def __init__(self, *, C: float = 1.0, tol: float = 1e-3, steps: int = 200):
        self.C = C
        self.tol = tol
        self.steps = steps

    def solve(
        self,
        X: Float[Tensor, "cell prompt d"],
        y: Bool[Tensor, "prompt"],
        groups: Sequence | None = None,  # noqa: ARG002
    ) -> tuple[Float[Tensor, "cell d"], Float[Tensor, "cell"]]:
        if self.C <= 0:
            raise ValueError(f"C is {self.C}: it must be positive")
        X, mean, scale = standardise(X)
        coef, intercept = _descend(X, y.to(X.dtype), 1 / self.C, self.tol, self.steps)
        coef = coef / scale
        return coef[:, 0], (intercept - _dot(coef, mean))[:, 0, 0]


def _descend(
    X: Float[Tensor, "cell prompt d"], y: Float[Tensor, "prompt"], penalty: float, tol: float, steps: int
) -> tuple[Float[Tensor, "cell 1 d"], Float[Tensor, "cell 1 1"]]:
    cells, n, d = X.shape
    dual = d > n
    features = X @ X.mT if dual else X
    if dual:
        # Sums of prompts that cancel must cost something, or a direction may grow along them unseen until rounding
        # decides. This much is below the rounding of the products, and moves no logit by more than itself times C.
        features.diagonal(dim1=1, dim2=2).add_(32 * torch.finfo(X.dtype).eps * d)
    transposed = features.mT.contiguous()  # a vector times either layout then reads memory in order
    coef = X.new_zeros(cells, 1, features.shape[2])
    intercept = torch.logit(y.mean()).expand(cells, 1, 1).clone()
    logits = intercept.expand(cells, 1, n).clone()
    inverse, curvature, last = coef, intercept, None
    moving = torch.ones_like(intercept, dtype=torch.bool)
    for step in range(steps):
        p = torch.sigmoid(logits)
        if step % RENEW == 0:
            weights = p * (1 - p)
            hessian = features * weights if dual else (transposed * weights) @ features
            hessian.diagonal(dim1=1, dim2=2).add_(penalty)
            inverse, curvature, last = torch.linalg.inv(hessian), weights.sum(2, keepdim=True), None
        error = p - y
        force = (error if dual else error @ features) + penalty * coef
        gradient = (force @ features if dual else force, error.sum(2, keepdim=True))
        downhill = (force @ inverse, gradient[1] / curvature)
        decrement = _dot(gradient[0], downhill[0]) + gradient[1] * downhill[1]  # twice the excess, if quadratic
        moving = moving & (decrement > 2 * tol)
        if not moving.any():
            break
        along = (-downhill[0], -downhill[1])
        if last is not None:
            before, size, previous = last
            kept = (decrement - _dot(downhill[0], before[0]) - downhill[1] * before[1]) / size
            kept = kept.clamp(min=0)  # Polak-Ribière: start again where the directions stop helping
            along = (along[0] + kept * previous[0], along[1] + kept * previous[1])
        along = (torch.where(moving, along[0], 0), torch.where(moving, along[1], 0))
        last = (gradient, decrement, along)
        slope = along[0] @ transposed
        ridge = penalty * (slope if dual else along[0])
        length = _search(logits, slope + along[1], y, _dot(ridge, coef), _dot(ridge, along[0]))
        coef = coef + length * along[0]
        intercept = intercept + length * along[1]
        logits = logits + length * (slope + along[1])
    else:
        warnings.warn(
            f"logistic regression had not converged in {int(moving.sum())} of {cells} cells after {steps} steps: "
            "raise steps or tol",
            ConvergenceWarning,
            stacklevel=4,
        )
    return coef @ X if dual else coef, intercept


def _search(
    logits: Float[Tensor, "cell 1 prompt"],
    slope: Float[Tensor, "cell 1 prompt"],
    y: Float[Tensor, "prompt"],
    linear: Float[Tensor, "cell 1 1"],
    square: Float[Tensor, "cell 1 1"],
) -> Float[Tensor, "cell 1 1"]:
    """Length of the step that minimises the objective along a direction: Newton's method within a bracket.

    `linear` and `square` are the ridge's slope and curvature along it.
    """
    length = torch.zeros_like(linear)
    low, high = torch.zeros_like(length), torch.full_like(length, torch.inf)
    for _ in range(2):
        p = torch.sigmoid(logits + length * slope)
        first = _dot(p - y, slope) + linear + length * square
        second = _dot(p * (1 - p) * slope, slope) + square
        low, high = torch.where(first < 0, length, low), torch.where(first < 0, high, length)
        length = length - torch.where(second > 0, first / second, 0)
        length = torch.where((length >= low) & (length <= high), length, (low + high) / 2)
    return length


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)
