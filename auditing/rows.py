"""Figures as the report has them: with their interval and n."""

from __future__ import annotations

import numpy as np

from ..models.generation import Rate
from ..models.parity import ParityReport
from ..report import schema


def rate(found: Rate) -> schema.Estimate:
    low, high = found.interval
    return schema.Estimate(value=found.value, low=low, high=high, n=found.n)


def estimate(found) -> schema.Estimate:
    return schema.Estimate(value=found.value, low=found.low, high=found.high, n=found.n)


def mean(values) -> schema.Estimate:
    drawn = np.random.default_rng(0).choice(values, (1000, len(values))).mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return schema.Estimate(value=float(values.mean()), low=float(low), high=float(high), n=len(values))


def parity(report: ParityReport) -> schema.Parity:
    return schema.Parity(
        logits=report.logits,
        residual=list(report.residual),
        tolerance=report.tolerance,
        n_prompts=report.n_prompts,
        unsteady=report.unsteady,
    )
