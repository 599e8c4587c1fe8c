"""Distance to the k-th nearest trusted prompt."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from .anomaly import AnomalyDetector, nearest, squared_distances


class NearestNeighbourDistance(AnomalyDetector):
    """Euclidean distance to the `n_neighbors`-th nearest trusted prompt, or to the furthest if there are fewer.

    It takes no shape for granted, so trusted prompts may form any number of clusters. It measures in raw units: a few
    features of large variance decide, as the massive activations of a residual stream do; there prefer
    `MahalanobisDistance`. Clusters of different density get different scores: see `LocalOutlierFactorDetector`.

    Args:
        n_neighbors: More is smoother.
        contamination: Share of the trusted prompts that `predict` calls outliers.

    Source: Ramaswamy et al., "Efficient algorithms for mining outliers from large data sets" (2000). Sun et al.,
    "Out-of-distribution detection with deep nearest neighbors" (2022), scale prompts to length 1 first; here not.
    """

    def __init__(self, *, n_neighbors: int = 5, contamination: float = 0.05):
        self.n_neighbors = n_neighbors
        self.contamination = contamination

    def measure(
        self, trusted: Float[Tensor, "cell trusted d"], X: Float[Tensor, "cell prompt d"]
    ) -> Float[Tensor, "cell prompt"]:
        k = min(self.n_neighbors, trusted.shape[1])
        return nearest(squared_distances(X, trusted), k).sqrt()
