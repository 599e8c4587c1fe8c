"""Mahalanobis distance from the trusted prompts."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from .anomaly import AnomalyDetector
from .covariance import ledoit_wolf, solve_rows


class MahalanobisDistance(AnomalyDetector):
    """Squared distance from the trusted mean in units of their covariance, shrunk by Ledoit and Wolf.

    Equal to `sklearn.covariance.LedoitWolf().fit(trusted).mahalanobis(X)`. The first detector to try: nothing to tune,
    and it weighs every direction by how much trusted prompts vary in it. It takes them for one Gaussian cloud; where
    they form several, by topic say, prefer a neighbour-based detector. Where trusted prompts do not vary at all it is the
    squared Euclidean distance (scikit-learn then returns 0).

    Args:
        contamination: Share of the trusted prompts that `predict` calls outliers.

    Source: Lee et al., "A simple unified framework for detecting out-of-distribution samples" (2018), with one class.
    """

    def __init__(self, *, contamination: float = 0.05):
        self.contamination = contamination

    def measure(
        self, trusted: Float[Tensor, "cell trusted d"], X: Float[Tensor, "cell prompt d"]
    ) -> Float[Tensor, "cell prompt"]:
        mean = trusted.mean(1, keepdim=True)
        rows, X = trusted - mean, X - mean
        shrinkage, variance = ledoit_wolf(rows)
        rows.mul_(((1 - shrinkage) / rows.shape[1]).sqrt()[:, None, None])
        diagonal = (shrinkage * variance)[:, None].expand(-1, rows.shape[2])
        return (X.mT * solve_rows(diagonal, rows, X.mT)).sum(1).clamp(min=0)
