"""AUROC with a bootstrap over groups, paired between models: the interval that specificity needs.

A group's prompts are drawn together and with the same weights for every model, so that what makes a prompt easy for
both cancels in the difference. The bootstrap knows only the groups that it has: where none of them fails it would claim
certainty, so an AUROC may not come closer to 1 than `unseen_loss` allows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

K = TypeVar("K")


@dataclass(frozen=True)
class Interval:
    """A figure with its 95% interval over `n` groups."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}] n={self.n}"

    @property
    def signed(self) -> str:
        """As a difference, without `n`, for tables that give it elsewhere."""
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


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
    """AUROC under each row of group weights; ties count half. NaN where a row draws no prompt of one side."""
    up, down = scores[positive], scores[~positive]
    wins = (up[:, None] > down[None, :]) + 0.5 * (up[:, None] == down[None, :])
    of_up, of_down = weights[:, group[positive]].astype(float), weights[:, group[~positive]].astype(float)
    won, compared = np.einsum("rp,rp->r", of_up @ wins, of_down), of_up.sum(1) * of_down.sum(1)
    return np.divide(won, compared, out=np.full(len(weights), np.nan), where=compared > 0)


def unseen_loss(n: int) -> float:
    """The most AUROC that may be missing although `n` groups show no failure, with 97.5% confidence.

    If a share p of all groups fails (either of its prompts on the wrong side of the threshold), `n` groups show none
    with probability (1 - p)**n, so p is at most 1 - 0.025**(1/n), Clopper and Pearson's bound. A comparison takes its
    prompts from two groups and is lost only if one of them fails, so AUROC is at least (1 - p)**2.
    """
    return 1 - 0.025 ** (2 / n)


def auroc_interval(values: Float[np.ndarray, "resample"], n: int) -> Interval:
    """Percentile interval of resampled AUROCs, the first being the estimate.

    No score on `n` groups may claim more than a perfect one could: the low end is at most 1 - `unseen_loss`, the high
    end at least `unseen_loss`. Between those the bootstrap stands as it is, and is known to be too sure where only a few
    groups fail: where 9% of 40 groups fail on both sides, the low end is below the truth in 90% of samples, not 97.5%.
    """
    low, high = _percentiles(values)
    return Interval(float(values[0]), min(low, 1 - unseen_loss(n)), max(high, unseen_loss(n)), n)


def gap_interval(values: Float[np.ndarray, "resample"], n: int) -> Interval:
    """Percentile interval of resampled differences of two AUROCs, the first being the estimate.

    Where no resample moves (both models perfect, or the same) it is widened by `unseen_loss` to either side. It is not
    adjusted for how many layers and probes are looked at: one of many rows may lie above 0 by chance.
    """
    value = float(values[0])
    low, high = _percentiles(values)
    if high - low < 1e-12:
        low, high = max(-1.0, value - unseen_loss(n)), min(1.0, value + unseen_loss(n))
    return Interval(value, low, high, n)


def simultaneous_lows(gaps: dict[K, Float[np.ndarray, "resample"]]) -> dict[K, float]:
    """Lower ends of resampled differences that hold for all of them together, with 97.5% confidence.

    How far a resample exceeds its estimate is taken at its largest over all rows, so the best of many rows is paid for.
    Undefined resamples (nobody of one side drawn) count as no excess.
    """
    excess = np.max([np.nan_to_num(values[1:] - values[0]) for values in gaps.values()], axis=0)
    reach = float(np.quantile(excess, 0.975))
    return {key: float(values[0]) - reach for key, values in gaps.items()}


def _percentiles(values: Float[np.ndarray, "resample"]) -> tuple[float, float]:
    drawn = values[1:][~np.isnan(values[1:])]
    if not len(drawn):
        return float(values[0]), float(values[0])
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)
