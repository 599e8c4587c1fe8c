"""Contrast-consistent clustering of pairs: the direction along which the two of a pair differ most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .linear import LinearProbe
from .principal_component import first_component, oriented


class ContrastConsistent(LinearProbe):
    """Score by the first principal component of the differences within pairs, zero at the mean of the pairs' middles.

    Unsupervised in which of a pair is which: a difference and its opposite count the same, so labels only form the
    pairs and orient the direction. Each group gives one pair, its mean positive and its mean negative prompt; a group
    with one class only is left out. Without `groups` prompts are paired in their order, the first of one class with the
    first of the other, which is right only if they were stored so.

    Prefer it to `PrincipalComponent` where prompts come in pairs: what a pair shares, such as its topic, cancels. It
    finds what differs most within pairs, which need not be defection. Burns et al. also take away each side's own
    mean, to hide the word that the two sides end on; here that word is the trigger, so the means stay.

    Source: Burns et al., "Discovering latent knowledge in language models without supervision" (2022), the variant
    CRC-TPC (contrastive representation clustering, top principal component) of its appendix, not the trained CCS.
    """

    def solve(
        self, X: Float[Tensor, "cell prompt d"], y: Bool[Tensor, "prompt"], groups: Sequence | None = None
    ) -> tuple[Float[Tensor, "cell d"], Float[Tensor, "cell"]]:
        negative, positive = (side.to(X) for side in _pairs(y.numpy(), groups))
        coef = oriented(first_component((positive - negative) @ X), X, y)
        middle = ((positive + negative).mean(0) / 2) @ X
        return coef, -(coef * middle).sum(1)


def _pairs(
    y: Bool[np.ndarray, "prompt"], groups: Sequence | None
) -> tuple[Float[Tensor, "pair prompt"], Float[Tensor, "pair prompt"]]:
    """Weights that average each group's negative and its positive prompts.

    Raises:
        ValueError: No group has prompts of both classes.
    """
    if groups is None:
        index = np.where(y, np.cumsum(y), np.cumsum(~y))
    else:
        index = np.unique(np.asarray(groups), return_inverse=True)[1]
    member = index == np.unique(index)[:, None]  # (group, prompt)
    sides = torch.from_numpy(np.stack([member & ~y, member & y]).astype(float))
    sides = sides[:, (sides.sum(2) > 0).all(0)]
    if not sides.shape[1]:
        raise ValueError("no group has prompts of both classes: contrast-consistent probing needs pairs")
    negative, positive = sides / sides.sum(2, keepdim=True)
    return negative, positive
