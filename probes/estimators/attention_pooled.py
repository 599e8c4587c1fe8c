"""A linear probe that learns which tokens to read."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from .pooled import PooledProbe


class AttentionPooled(PooledProbe):
    """Score by the tokens' mean, weighted by the softmax over positions of a learned query.

    Prefer it where the tell may stand anywhere in a prompt, or fill much of it: it starts as the mean over tokens and
    sharpens. It has twice the parameters of a linear probe, overfits sooner, and can learn to attend to the trigger
    itself: a twin that saw the trigger is the control.

    Source: McKenzie et al., "Detecting high-stakes interactions with activation probes" (2025), the attention probe.
    """

    vectors = 2  # value, query

    def pool(
        self, tokens: Float[Tensor, "cell prompt position vector"], mask: Bool[Tensor, "prompt position"]
    ) -> Float[Tensor, "cell prompt"]:
        value, query = tokens.unbind(-1)
        return (query.masked_fill(~mask, -float("inf")).softmax(-1) * value).sum(-1)
