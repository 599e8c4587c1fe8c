"""Local outlier factor of a prompt among the trusted ones."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .anomaly import AnomalyDetector, nearest, squared_distances


class LocalOutlierFactorDetector(AnomalyDetector):
    """How much sparser trusted prompts lie around a prompt than around its neighbours; about 1 inside a cluster.

    Equal to `-sklearn.neighbors.LocalOutlierFactor(novelty=True).fit(trusted).score_samples(X)`, but that all prompts at
    the k-th distance are neighbours, as in the paper, where scikit-learn takes some k of them. Prefer it to
    `NearestNeighbourDistance` where trusted prompts form clusters of different density. Of all detectors it needs the
    most prompts, several times `n_neighbors` in each cluster, and like all that measure in raw units it hears the
    features of largest variance only.

    Args:
        n_neighbors: Size of a neighbourhood; at most one less than there are trusted prompts is used.
        contamination: Share of the trusted prompts that `predict` calls outliers.

    Source: Breunig et al., "LOF: identifying density-based local outliers" (2000), section 4.
    """

    def __init__(self, *, n_neighbors: int = 20, contamination: float = 0.05):
        self.n_neighbors = n_neighbors
        self.contamination = contamination

    def measure(
        self, trusted: Float[Tensor, "cell trusted d"], X: Float[Tensor, "cell prompt d"]
    ) -> Float[Tensor, "cell prompt"]:
        k = min(self.n_neighbors, trusted.shape[1] - 1)
        among = squared_distances(trusted, trusted).sqrt_()
        among.diagonal(dim1=1, dim2=2).fill_(torch.inf)  # no trusted prompt is its own neighbour
        reach = nearest(among, k)
        density, _ = _density(among, reach, reach)
        distance = squared_distances(X, trusted).sqrt_()
        own, neighbours = _density(distance, nearest(distance, k), reach)
        return (neighbours @ density[..., None])[..., 0] / neighbours.sum(2) / own


def _density(
    distance: Float[Tensor, "cell prompt t"], furthest: Float[Tensor, "cell prompt"], reach: Float[Tensor, "cell t"]
) -> tuple[Float[Tensor, "cell prompt"], Float[Tensor, "cell prompt t"]]:
    """Local reachability density, and 1 at each neighbour; 1e-10, as in scikit-learn, keeps that of duplicates finite.

    Sums run over all trusted prompts with weights 0 and 1: gathering the k neighbours by index is slower.
    """
    neighbours = (distance <= furthest[..., None]).to(distance.dtype)
    reached = torch.linalg.vecdot(torch.maximum(distance, reach[:, None]).nan_to_num_(posinf=0), neighbours)
    return 1 / (reached / neighbours.sum(2) + 1e-10), neighbours
