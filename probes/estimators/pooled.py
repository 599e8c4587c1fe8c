"""What pooled probes share: they read all tokens of a prompt, and learn on the prompt's label alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from .cells import as_cells, as_labels, chunks, same_features, standardise


class PooledProbe(ClassifierMixin, BaseEstimator, ABC):
    """A binary classifier of prompts of several tokens, larger for the greater label.

    `X` is (prompt, position, d); prompts with fewer tokens hold NaN in all features of the positions that they lack,
    wherever those are. Features are standardised over all tokens; cross-entropy of the pooled score, with a ridge
    as in logistic regression, is minimised by Adam from 0 with a falling rate, all prompts in every step: nothing is
    drawn at random. The objective is not convex, and `steps` are not a promise of its minimum.

    A subclass says how many vectors it learns and how it pools. Attributes after `fit`: `coef_` (vector, d), the vector
    that scores a token first; `intercept_`; `classes_`.
    """

    vectors: int  # learned per cell, the first of which scores a token

    def __init__(self, *, C: float = 1.0, steps: int = 200, learning_rate: float = 0.05):
        self.C = C
        self.steps = steps
        self.learning_rate = learning_rate

    @abstractmethod
    def pool(
        self, tokens: Float[Tensor, "cell prompt position vector"], mask: Bool[Tensor, "prompt position"]
    ) -> Float[Tensor, "cell prompt"]:
        """A prompt's score from its tokens' products with the vectors, up to the intercept."""

    def fit(self, X: Float[np.ndarray, "prompt position d"], y: np.ndarray) -> Self:
        """Fit one cell, in the precision of `X`.

        Raises:
            ValueError: A token holds NaN in some features only or infinity, shapes do not match, a prompt has no token,
                or `y` has not two classes.
        """
        X, y = np.asarray(X), np.asarray(y)
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) != 2:
            raise ValueError(f"{type(self).__name__} needs two classes, got {len(self.classes_)}")
        tokens, present = _as_tokens(X[None], len(y))
        coef, intercept = self._solve(tokens, torch.as_tensor(y == self.classes_[1]), present)
        self.coef_, self.intercept_ = coef[0].numpy(), float(intercept[0])
        self.n_features_in_ = X.shape[2]
        return self

    def decision_function(self, X: Float[np.ndarray, "prompt position d"]) -> Float[np.ndarray, "prompt"]:
        check_is_fitted(self)
        tokens, present = _as_tokens(np.asarray(X)[None])
        if tokens.shape[-1] != self.n_features_in_:
            raise ValueError(f"X has {tokens.shape[-1]} features, but {type(self).__name__} saw {self.n_features_in_}")
        return (self.pool(tokens @ torch.as_tensor(self.coef_).to(tokens).T, present) + self.intercept_)[0].numpy()

    def predict(self, X: Float[np.ndarray, "prompt position d"]) -> np.ndarray:
        return self.classes_[(self.decision_function(X) > 0).astype(int)]

    def cell_scores(
        self,
        X_fit: Float[Tensor, "cell prompt position d"],
        y: Bool[Tensor, "prompt"],
        X: Float[Tensor, "cell scored position d"],
        groups: Sequence | None = None,  # noqa: ARG002
    ) -> Float[Tensor, "cell scored"]:
        """Fit every cell (a layer) on `X_fit` and score `X`; the same positions are NaN in all cells.

        Raises:
            ValueError: As `fit` does.
        """
        y = as_labels(y)
        X_fit, present_fit = _as_tokens(X_fit, len(y))
        X, present = _as_tokens(X)
        same_features(X_fit, X)
        scores = []
        for part in chunks(len(X), 6 * X_fit[0].nbytes):
            coef, intercept = self._solve(X_fit[part], y, present_fit)
            scores.append(self.pool(X[part].to(coef.dtype) @ coef.mT[:, None], present) + intercept[:, None])
        return torch.cat(scores)

    def _solve(
        self,
        X: Float[Tensor, "cell prompt position d"],
        y: Bool[Tensor, "prompt"],
        mask: Bool[Tensor, "prompt position"],
    ) -> tuple[Float[Tensor, "cell vector d"], Float[Tensor, "cell"]]:
        if self.C <= 0:
            raise ValueError(f"C is {self.C}: it must be positive")
        tokens, mean, scale = standardise(X[:, mask])  # (cell, token, d): absent positions cost nothing
        label = y.to(X.dtype).expand(len(X), -1)
        with torch.enable_grad():
            coef = X.new_zeros(len(X), X.shape[-1], self.vectors).requires_grad_()
            intercept = torch.logit(y.to(X.dtype).mean()).repeat(len(X), 1).requires_grad_()
            adam = torch.optim.Adam([coef, intercept], lr=self.learning_rate)
            rate = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(1, self.steps))
            for _ in range(self.steps):
                adam.zero_grad()
                products = X.new_zeros(*X.shape[:3], self.vectors)
                products[:, mask] = tokens @ coef
                scores = self.pool(products, mask) + intercept
                loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, label, reduction="sum")
                (loss + coef.square().sum() / (2 * self.C)).backward()
                adam.step()
                rate.step()
        coef = coef.detach().mT / scale
        return coef, intercept.detach()[:, 0] - (coef[:, 0] * mean[:, 0]).sum(1)


def _as_tokens(
    X: np.ndarray | Tensor, prompts: int | None = None
) -> tuple[Float[Tensor, "cell prompt position d"], Bool[Tensor, "prompt position"]]:
    """`X` with 0 where no token is, and True where one is."""
    X = torch.as_tensor(X)
    if X.ndim != 4:
        raise ValueError(f"X of one cell has {X.ndim - 1} dimensions: expected (prompt, position, d)")
    if prompts is not None and prompts != X.shape[1]:
        raise ValueError(f"X has {X.shape[1]} prompts and y has {prompts}: they must be as many")
    mask = ~X[0].isnan().all(-1)
    if len(empty := (~mask.any(1)).nonzero()):
        raise ValueError(f"prompt {int(empty[0])} has no token: all its positions are NaN")
    if not mask.all():
        if not X[:, ~mask].isnan().all():
            raise ValueError("a position is NaN in the first cell but not in all: cells must lack the same tokens")
        X = X.masked_fill(~mask[..., None], 0)
    return as_cells(X), mask
