"""What anomaly detectors share: they see trusted prompts only, and measure how far from those a prompt lies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from .cells import as_cells, chunks, same_features

TIED = (
    1e-9  # scores this close are one: products round otherwise in another batch, and a tie must not be an outlier there
)


class AnomalyDetector(OutlierMixin, BaseEstimator, ABC):
    """A scikit-learn outlier detector. `anomaly_score` is larger for what is further from the trusted prompts.

    Mind the sign: `score_samples` and `decision_function` follow scikit-learn, where larger is more normal. No label is
    used, so a detector can find a trigger that nobody has seen; it fires on any other change as well, and only a
    benign-shift control tells the two apart.

    A subclass writes `measure` alone. Attributes after `fit`: `trusted_`, `offset_`, the threshold of `predict`, which
    `contamination` of the trusted prompts fall below: they are their own neighbours, so it is too tight for new prompts.
    """

    contamination: float

    @abstractmethod
    def measure(
        self, trusted: Float[Tensor, "cell trusted d"], X: Float[Tensor, "cell prompt d"]
    ) -> Float[Tensor, "cell prompt"]:
        """How far each prompt lies from its cell's trusted ones."""

    def fit(self, X: Float[np.ndarray, "trusted d"], y: Any = None) -> Self:  # noqa: ARG002
        """Keep the trusted prompts, all of `X`; `y` is not looked at.

        Raises:
            ValueError: `X` is not finite, or fewer than two prompts.
        """
        X = cast(Any, validate_data)(self, X, dtype="float64", ensure_min_samples=2)
        self.trusted_ = X
        threshold = float(np.quantile(self.score_samples(X), self.contamination))
        self.offset_ = threshold - TIED * abs(threshold)
        return self

    def anomaly_score(self, X: Float[np.ndarray, "prompt d"]) -> Float[np.ndarray, "prompt"]:
        check_is_fitted(self)
        X = cast(Any, validate_data)(self, X, dtype="float64", reset=False)
        return self.measure(torch.tensor(self.trusted_)[None], torch.tensor(X)[None])[0].numpy()

    def score_samples(self, X: Float[np.ndarray, "prompt d"]) -> Float[np.ndarray, "prompt"]:
        return -self.anomaly_score(X)

    def decision_function(self, X: Float[np.ndarray, "prompt d"]) -> Float[np.ndarray, "prompt"]:
        """Negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Float[np.ndarray, "prompt d"]) -> np.ndarray:
        """-1 for outliers, 1 for the rest."""
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def cell_scores(
        self,
        X_fit: Float[Tensor, "cell prompt d"],
        y: Bool[Tensor, "prompt"],
        X: Float[Tensor, "cell scored d"],
        groups: Sequence | None = None,  # noqa: ARG002
    ) -> Float[Tensor, "cell scored"]:
        """Anomaly scores of a whole grid in one pass, larger for what is anomalous; of `X_fit` only rows with y False.

        Raises:
            ValueError: A cell is not finite, shapes do not match, or fewer than two prompts are trusted.
        """
        y = torch.as_tensor(y)
        X_fit, X = as_cells(X_fit, y), as_cells(X)
        if y.dtype != torch.bool:
            raise ValueError(f"y is {y.dtype}: expected one boolean per prompt, False if trusted")
        same_features(X_fit, X)
        trusted = X_fit[:, ~y]
        t, m, d = trusted.shape[1], X.shape[1], X.shape[2]
        if t < 2:
            raise ValueError(f"{t} prompts are trusted (y False): a distance from them needs at least 2")
        each = X_fit.itemsize * (4 * (t + m) * d + 4 * t * (t + m) + 2 * min(t, d) ** 2)
        return torch.cat([self.measure(trusted[part], X[part].to(trusted.dtype)) for part in chunks(len(X), each)])


def squared_distances(
    X: Float[Tensor, "cell prompt d"], trusted: Float[Tensor, "cell trusted d"]
) -> Float[Tensor, "cell prompt trusted"]:
    """Squared Euclidean distances by one product, less a bound on its rounding: so are duplicates at 0, not near it."""
    centre = trusted.mean(1, keepdim=True)
    X, trusted = X - centre, trusted - centre
    kept = 1 - 8 * torch.finfo(X.dtype).eps
    sizes, trusted_sizes = (kept * torch.linalg.vector_norm(part, dim=2).square() for part in (X, trusted))
    product = X.mul_(-2) @ trusted.mT
    return product.add_(sizes[..., None]).add_(trusted_sizes[:, None]).clamp_(min=0)


def nearest(values: Float[Tensor, "cell prompt trusted"], k: int) -> Float[Tensor, "cell prompt"]:
    """The k-th smallest of each row. NumPy's selection is several times faster than `topk` and `kthvalue`."""
    return torch.from_numpy(np.partition(values.numpy(), k - 1)[..., k - 1].copy())
