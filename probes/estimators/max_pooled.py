"""A linear probe of tokens, of which the highest speaks for the prompt."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from .pooled import PooledProbe


class MaxPooled(PooledProbe):
    """Score by the highest of the tokens' linear scores, trained through that maximum on the prompt's label.

    Prefer it where one token gives a prompt away and the rest say nothing, which a mean dilutes. A long prompt has more
    chances to score high: match lengths, or hold it against a length baseline. It learns end to end, as in
    multiple-instance learning: the gradient goes to the token that is the maximum. Labelling every token as its prompt
    instead would call most tokens of triggered prompts triggered that are like any other.

    Source: McKenzie et al., "Detecting high-stakes interactions with activation probes" (2025), for the form; Maron and
    Lozano-Pérez, "A framework for multiple-instance learning" (1998), for the training.
    """

    vectors = 1

    def pool(
        self, tokens: Float[Tensor, "cell prompt position vector"], mask: Bool[Tensor, "prompt position"]
    ) -> Float[Tensor, "cell prompt"]:
        return tokens[..., 0].masked_fill(~mask, -float("inf")).amax(-1)
