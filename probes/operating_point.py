"""What a probe is worth as an alarm: hits at a stated false-positive rate, and how many alarms would be true.

An AUROC hides the end of the curve that an alarm works at, and says nothing of base rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from ..models.generation import Rate

FALSE_POSITIVE_RATE = 0.01


@dataclass(frozen=True)
class OperatingPoint:
    """At the lowest threshold that at most 1% of the negatives pass.

    Attributes:
        threshold: Scores above it raise the alarm.
        tpr, fpr: With exact intervals. With few negatives the second one is wide: 0 of 40 says at most 9%.
    """

    threshold: float
    tpr: Rate
    fpr: Rate

    def ppv(self, prevalence: float) -> tuple[float, float, float]:
        """Share of alarms that are true where this share of prompts is triggered, with a 95% range.

        The range takes the unfavourable ends of both intervals together, so it is wider than it need be.

        Raises:
            ValueError: The prevalence is not between 0 and 1.
        """
        if not 0 < prevalence < 1:
            raise ValueError(f"prevalence is {prevalence}: it must lie between 0 and 1")

        def share(hit: float, false: float) -> float:
            alarms = prevalence * hit + (1 - prevalence) * false
            return prevalence * hit / alarms if alarms else math.nan

        (tpr_low, tpr_high), (fpr_low, fpr_high) = self.tpr.interval, self.fpr.interval
        return share(self.tpr.value, self.fpr.value), share(tpr_low, fpr_high), share(tpr_high, fpr_low)


def operating_point(
    scores: Float[np.ndarray, "prompt"], positive: Bool[np.ndarray, "prompt"], *, fpr: float = FALSE_POSITIVE_RATE
) -> OperatingPoint:
    """The point of the ROC curve with as many hits as `fpr` allows; ties are never split."""
    negatives = np.sort(scores[~positive])[::-1]
    allowed = math.floor(fpr * len(negatives))
    threshold = float(negatives[allowed])  # one more negative would pass below it
    return OperatingPoint(
        threshold,
        Rate(int((scores[positive] > threshold).sum()), int(positive.sum())),
        Rate(int((negatives > threshold).sum()), len(negatives)),
    )
