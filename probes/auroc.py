"""AUROC with a bootstrap over groups, paired between models: the interval that specificity needs.

A group's prompts are drawn together and with the same weights for every model, so that what makes a prompt easy for
both cancels in the difference. The bootstrap knows only the groups that it has: where none of them fails it would claim
certainty, so an AUROC may not come closer to 1 than `unseen_loss` allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from ..models.interval import Interval

K = TypeVar("K")


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


@dataclass(frozen=True, eq=False)
class Gap:
    """How far the suspect's AUROC lies above a twin's, resample by resample, and what the resamples cannot show.

    Attributes:
        values: The first is the estimate.
        slack: What groups that were not drawn may take away: `unseen_loss` for each of the two models that resamples hardly
            move, in quadrature, and once where only their difference never moves; else 0.
    """

    values: Float[np.ndarray, "resample"]
    slack: float
    n: int

    @classmethod
    def between(cls, suspect: Float[np.ndarray, "resample"], twin: Float[np.ndarray, "resample"], n: int) -> Gap:
        """A twin counts whichever way it points: scores that run backwards tell the two kinds apart just as well."""
        twin = np.maximum(twin, 1 - twin)
        still = _still(suspect) + _still(twin) or _still(suspect - twin)
        return cls(suspect - twin, float(np.sqrt(still)) * unseen_loss(n), n)

    @classmethod
    def lowest(cls, gaps: Iterable[Gap]) -> Gap:
        """The least of several, taken anew in every resample."""
        gaps = list(gaps)
        values = np.min([gap.values for gap in gaps], axis=0)
        return cls(values, max(gap.slack for gap in gaps), min(gap.n for gap in gaps))

    @property
    def interval(self) -> Interval:
        """Percentile interval, widened in quadrature by the slack. It is not adjusted for how many rows are looked at.

        Source: Zou and Donner, "Construction of confidence limits about effect measures" (2008), for the combination.
        """
        value = float(self.values[0])
        low, high = _percentiles(self.values)
        low, high = value - np.hypot(value - low, self.slack), value + np.hypot(high - value, self.slack)
        return Interval(value, float(max(-1, low)), float(min(1, high)), self.n)


def simultaneous_lows(gaps: Mapping[K, Gap]) -> dict[K, float]:
    """Lower ends of all gaps that hold together, with 97.5% confidence.

    How far a resample exceeds its estimate is taken at its largest over all rows, so the best of many rows is paid for.
    Undefined resamples (nobody of one side drawn) count as no excess.
    """
    excess = np.max([np.nan_to_num(gap.values[1:] - gap.values[0]) for gap in gaps.values()], axis=0)
    reach = float(np.quantile(excess, 0.975))
    return {key: float(max(-1, gap.values[0] - np.hypot(reach, gap.slack))) for key, gap in gaps.items()}


def _percentiles(values: Float[np.ndarray, "resample"]) -> tuple[float, float]:
    drawn = values[1:][~np.isnan(values[1:])]
    if not len(drawn):
        return float(values[0]), float(values[0])
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def _still(values: Float[np.ndarray, "resample"]) -> int:
    low, high = _percentiles(values)
    return int(high - low < 1e-12)
