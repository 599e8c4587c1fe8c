"""AUROC with a bootstrap over groups, paired between models: the interval that specificity needs.

A group's prompts are drawn together and with the same weights for every model, so that what makes a prompt easy for both
cancels in the difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest


@dataclass(frozen=True)
class Interval:
    """A figure with its 95% interval over `n` groups."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}] n={self.n}"


def resampled_groups(n_groups: int, *, resamples: int, seed: int) -> Int[np.ndarray, "resample group"]:
    """How often each group is drawn; the first row is the sample itself."""
    drawn = np.random.default_rng(seed).multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=resamples)
    return np.vstack([np.ones(n_groups, int), drawn])


def weighted_auroc(
    scores: Float[np.ndarray, "prompt"],
    positive: Bool[np.ndarray, "prompt"],
    group: Int[np.ndarray, "prompt"],
    weights: Int[np.ndarray, "resample group"],
) -> Float[np.ndarray, "resample"]:
    """AUROC under each row of group weights; ties count half."""
    up, down = scores[positive], scores[~positive]
    wins = (up[:, None] > down[None, :]) + 0.5 * (up[:, None] == down[None, :])
    of_up, of_down = weights[:, group[positive]].astype(float), weights[:, group[~positive]].astype(float)
    return np.einsum("rp,rp->r", of_up @ wins, of_down) / (of_up.sum(1) * of_down.sum(1))


def interval(values: Float[np.ndarray, "resample"], n: int, *, largest: float = 1.0) -> Interval:
    """Percentile interval of resampled values, the first being the estimate.

    Where no resample moves (a perfect AUROC, a difference of exactly 0) a bootstrap claims certainty that `n` groups
    cannot give; the end is then widened to what an exact binomial bound leaves open for an event never seen in `n`
    groups, times `largest`, the most that one group can matter.
    """
    value = float(values[0])
    low, high = np.quantile(values[1:], (0.025, 0.975))
    if high - low < 1e-12:
        open_end = largest * float(binomtest(0, n).proportion_ci(0.95, method="exact").high)
        low, high = value - open_end, value + open_end
    return Interval(value, float(low), float(high), n)
