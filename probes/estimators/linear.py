"""What linear probes share: a subclass solves for every cell's direction at once, one probe is a grid of one cell."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from .cells import as_cells, as_labels, chunks, same_features


class LinearProbe(ClassifierMixin, BaseEstimator, ABC):
    """A binary scikit-learn classifier that scores by one direction, larger for the greater label.

    A subclass writes `solve` alone. Attributes after `fit`: `coef_` (d), `intercept_`, `classes_`.
    """

    @abstractmethod
    def solve(
        self, X: Float[Tensor, "cell prompt d"], y: Bool[Tensor, "prompt"], groups: Sequence | None = None
    ) -> tuple[Float[Tensor, "cell d"], Float[Tensor, "cell"]]:
        """Direction and intercept of every cell, in the units of `X`; `groups` names each prompt's underlying one."""

    def fit(self, X: Float[np.ndarray, "prompt d"], y: np.ndarray, groups: Sequence | None = None) -> Self:
        """Fit one cell in double precision.

        Raises:
            ValueError: `X` is not finite, lengths differ, or `y` has not two classes.
        """
        X, y = cast(Any, validate_data)(self, X, y, dtype="float64")
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        name = type(self).__name__
        if len(self.classes_) > 2:
            raise ValueError(f"Only binary classification is supported; {name} got {len(self.classes_)} classes")
        if len(self.classes_) < 2:
            raise ValueError(f"{name} needs two classes, got 1 class: {self.classes_[0]!r}")
        _check_groups(groups, len(y))
        coef, intercept = self.solve(torch.tensor(X)[None], torch.as_tensor(y == self.classes_[1]), groups)
        self.coef_, self.intercept_ = coef[0].numpy(), float(intercept[0])
        return self

    def decision_function(self, X: Float[np.ndarray, "prompt d"]) -> Float[np.ndarray, "prompt"]:
        check_is_fitted(self)
        return cast(Any, validate_data)(self, X, dtype="float64", reset=False) @ self.coef_ + self.intercept_

    def predict(self, X: Float[np.ndarray, "prompt d"]) -> np.ndarray:
        check_is_fitted(self)
        return self.classes_[(self.decision_function(X) > 0).astype(int)]

    def cell_scores(
        self,
        X_fit: Float[Tensor, "cell prompt d"],
        y: Bool[Tensor, "prompt"],
        X: Float[Tensor, "cell scored d"],
        groups: Sequence | None = None,
    ) -> Float[Tensor, "cell scored"]:
        """Fit every cell on `X_fit` and score `X`: `fit` and `decision_function` of a whole grid in one pass.

        It works in the precision of `X_fit`, single at least; the estimator itself is left unfitted.

        Raises:
            ValueError: A cell is not finite, shapes do not match, or `y` is not boolean with both classes.
        """
        X_fit, X, y = as_cells(X_fit, y), as_cells(X), as_labels(y)
        same_features(X_fit, X)
        _check_groups(groups, len(y))
        scores = []
        n, d = X_fit.shape[1:]
        # Copies of the data, and a few square matrices of the smaller side.
        for part in chunks(len(X_fit), X_fit.itemsize * (4 * n * d + 4 * min(n, d) ** 2)):
            coef, intercept = self.solve(X_fit[part], y, groups)
            scores.append((coef[:, None] @ X[part].to(coef.dtype).mT)[:, 0] + intercept[:, None])
        return torch.cat(scores)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags


def class_means(
    X: Float[Tensor, "cell prompt d"], y: Bool[Tensor, "prompt"]
) -> tuple[Float[Tensor, "cell d"], Float[Tensor, "cell d"]]:
    """Means of the negative and of the positive prompts, in one pass over the data."""
    weights = torch.stack([~y, y]).to(X.dtype)
    negative, positive = (weights / weights.sum(1, keepdim=True) @ X).unbind(1)
    return negative, positive


def _check_groups(groups: Sequence | None, prompts: int) -> None:
    if groups is not None and len(groups) != prompts:
        raise ValueError(f"groups has {len(groups)} entries for {prompts} prompts: give one per prompt")
