"""What a sweep found: effects per pair with names on every axis, both runs' baselines and the noise floor."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd
import xarray as xr

from ..errors import OutputError
from ..reading import parsed
from ..untrusted import in_figure, shortened
from ..writing import whole_file
from .engine import Site
from .measuring import EngineName
from .netcdf import read_netcdf, to_netcdf
from .pairs import Direction

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DIMS = [
    ("pair", "layer", *last) for last in (("span",), ("head",), ("kv_head",), ("head", "span"), ("kv_head", "span"))
]
_SITES = {
    "z": "heads' output z",
    "q": "queries",
    "k": "keys",
    "v": "values",
    "pattern": "attention pattern",
    "mlp_out": "MLP output",
    "attn_out": "attention output",
}


@dataclass(frozen=True, eq=False)
class SweepResult:
    """Effects of patching.

    Attributes:
        effect: Metric of the patched run minus metric of the same run unpatched, dims (pair, layer, span), (pair, layer,
            head) or (pair, layer, head, span); `kv_head` where key-value heads are shared. NaN where a span has no counterpart in the other run. `label` holds what to write on the axis.
        clean, corrupted: Metric of the two unpatched runs, dims (pair).
        noise_floor: The most that a run moved when it was patched with itself, over a sample of cells, or what rounding the
            logits moves it, if that is more. Smaller effects mean nothing; in half precision larger ones may be rounding too.
        site, direction: What was patched, and which way.
        metric, unit: What was measured, as a sentence, and in what.
        dropped: Groups on which the metric is undefined; they are not in `effect`.
        suspect: Name of the model.
        engine: `wavefront`, or `per layer` where the model cannot be taken apart; both are exact. `fallback` says why.
    """

    effect: xr.DataArray
    clean: xr.DataArray
    corrupted: xr.DataArray
    noise_floor: float
    site: str
    direction: str
    metric: str
    unit: str
    dropped: tuple[str, ...]
    suspect: str
    engine: str = "wavefront"
    fallback: str = ""

    @property
    def column(self) -> str:
        """The last dimension: `span`, or `head`."""
        return str(self.effect.dims[-1])

    @property
    def gap(self) -> xr.DataArray:
        """By pair, metric of the source run minus that of the base: the effect of patching everything."""
        gap = self.clean - self.corrupted
        return gap if self.direction == "denoising" else -gap

    def mean(self) -> xr.DataArray:
        """Mean effect over the pairs in which the cell is defined, dims (layer, span or head)."""
        return self.effect.mean("pair")

    def interval(self, level: float = 0.95, *, resamples: int = 2000, seed: int = 0) -> xr.DataArray:
        """Percentile bootstrap interval of `mean` over pairs, with a first dimension `bound` (low, high).

        NaN where fewer than two pairs define the cell: one pair says nothing about others.
        """
        n = self.effect.sizes["pair"]
        drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
        values = self.effect.values.reshape(n, -1)
        known = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            means = (drawn @ np.where(known, values, 0)) / (drawn @ known)
        enough = known.sum(0) > 1
        bounds = np.full((2, values.shape[1]), np.nan)
        bounds[:, enough] = np.nanquantile(means[:, enough], ((1 - level) / 2, (1 + level) / 2), axis=0)
        coords = {name: coord for name, coord in self.effect.coords.items() if "pair" not in coord.dims}
        return xr.DataArray(
            bounds.reshape(2, *self.effect.shape[1:]),
            {"bound": ["low", "high"], **coords},
            ("bound", *self.effect.dims[1:]),
        )

    def normalized(self) -> xr.DataArray:
        """Mean effect as a share of the mean gap between the runs: 0 is the base run's metric, 1 the source run's.

        A ratio of means over the pairs in which the cell is defined; ratios pair by pair explode where a gap is small.
        """
        return self.mean() / self.gap.where(self.effect.notnull()).mean("pair")

    def to_dataframe(self) -> pd.DataFrame:
        """One row per cell: layer, span or head, label, mean, low, high, normalized, n (pairs that define it)."""
        bounds = self.interval()
        table = xr.Dataset(
            {
                "mean": self.mean(),
                "low": bounds.sel(bound="low", drop=True),
                "high": bounds.sel(bound="high", drop=True),
                "normalized": self.normalized(),
                "n": self.effect.notnull().sum("pair"),
            }
        )
        return table.to_dataframe().reset_index()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Heat map of `mean`, white at 0, tokens or heads along the bottom; cells that are not defined are hatched grey.

        Layers are the rows; where heads and spans are told apart, each head of each layer has a row.
        """
        import matplotlib.pyplot as plt

        mean, labels, rows = self.mean(), [str(label) for label in self.effect["label"].values], self._rows()
        values = mean.values.reshape(len(rows), len(labels))
        if ax is None:
            size = (max(4.0, 1.8 + 0.42 * len(labels)), 1.9 + (0.32 if mean.ndim == 2 else 0.16) * len(rows))
            ax = plt.subplots(figsize=size, layout="constrained")[1]
        largest = float(np.nanmax(np.abs(values), initial=0)) or 1.0
        ax.patch.set(facecolor="0.92", edgecolor="0.75", hatch="///")
        image = ax.imshow(values, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
        ax.set_xticks(range(len(labels)), [in_figure(label) for label in labels], rotation=90)
        ax.set_yticks(range(len(rows)), rows, fontsize=None if mean.ndim == 2 else "x-small")
        ax.set(ylabel=" and ".join(str(dim) for dim in mean.dims[:-1]), xlabel=self.column)
        ax.set_title(
            f"{_SITES.get(self.site, self.site)}, {self.direction} (mean of {self.effect.sizes['pair']} pairs)",
            fontsize="medium",
        )
        ax.figure.colorbar(image, ax=ax, label=f"effect ({self.unit})")
        return ax

    def _rows(self) -> list[str]:
        """Name of every row of the grid: `L3`, or `L3H1` where heads have rows of their own."""
        layers = [f"L{layer}" for layer in self.effect["layer"].values]
        if self.effect.ndim == 3:
            return layers
        return [f"{layer}{head}" for layer in layers for head in self.effect[str(self.effect.dims[2])].values]

    def save(self, path: str | Path) -> Path:
        """Write netCDF, under a temporary name first, so that a broken write leaves nothing under `path`.

        Raises:
            OutputError: The file cannot be written.
        """
        path = Path(path)
        data = xr.Dataset({"effect": self.effect, "clean": self.clean, "corrupted": self.corrupted})
        data.attrs = {name: getattr(self, name) for name in _scalars()} | {"dropped": json.dumps(self.dropped)}
        content = to_netcdf(data)
        with whole_file(path) as partial:
            partial.write_bytes(content)
        return path

    @classmethod
    def load(cls, path: str | Path) -> SweepResult:
        """Read what `save` wrote.

        Raises:
            OutputError: The file is missing, or is no saved sweep.
        """
        try:
            data = read_netcdf(Path(path))
            data = data.assign_coords(layer=data["layer"].astype(int))  # the classic kind has 32 bits for it
            arrays = {name: data[name].drop_vars("label", errors="ignore") for name in ("clean", "corrupted")}
            dropped = parsed(data.attrs["dropped"].encode())
            found = cls(
                effect=data["effect"],
                **arrays,
                **{name: data.attrs[name] for name in _scalars()},
                dropped=tuple(dropped),
            )
            _check(found)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            why = shortened(" ".join(str(error).split()), 300)
            raise OutputError(f"{path}: not a sweep saved by this version ({why}): run it again, and save it") from None
        return found

    def __repr__(self) -> str:
        mean, rows = self.mean(), self._rows()
        grid, share = (x.values.reshape(len(rows), -1) for x in (mean, self.normalized()))
        row, column = np.unravel_index(np.nan_to_num(np.abs(grid), nan=-1.0).argmax(), grid.shape)
        return (
            f"SweepResult({self.suspect}, {self.site}, {self.direction}, {self.effect.sizes['pair']} pairs; strongest "
            f"{rows[row]} {mean[self.column].values[column]}: {grid[row, column]:+.2f} {self.unit}, "
            f"{share[row, column]:+.0%} of the gap; noise floor {self.noise_floor:.0e}"
            + (f"; by the slow engine, as {self.fallback})" if self.fallback else ")")
        )


def _scalars() -> list[str]:
    return [f.name for f in fields(SweepResult) if f.type in ("str", "float")]


def _check(found: SweepResult) -> None:
    """Raises ValueError where what was read is nothing that a sweep finds."""
    effect = found.effect
    if effect.dims not in _DIMS or found.clean.dims != ("pair",) or found.corrupted.dims != ("pair",):
        raise ValueError(f"effect has the axes {', '.join(map(str, effect.dims))}")
    for name in (*effect.dims, "label"):
        along = effect.dims[-1] if name == "label" else name
        words = effect[name].dtype.kind == "O" and all(isinstance(one, str) for one in effect[name].values)
        if effect[name].dims != (along,) or not (words or (name == "layer" and effect[name].dtype.kind == "i")):
            raise ValueError(f"{name} does not name what stands along {along}")
    if np.isinf(effect).any() or not all(np.isfinite(run).all() for run in (found.clean, found.corrupted)):
        raise ValueError("numbers that are not finite")
    for name, known in (("site", get_args(Site)), ("direction", get_args(Direction)), ("engine", get_args(EngineName))):
        if getattr(found, name) not in known:
            raise ValueError(f"{name} is none of {', '.join(known)}")
    for field in fields(SweepResult):
        value = getattr(found, field.name)
        if field.type in ("str", "float") and not isinstance(value, str if field.type == "str" else float):
            raise ValueError(f"{field.name} is of another kind")
    if not 0 <= found.noise_floor < np.inf or not all(isinstance(group, str) for group in found.dropped):
        raise ValueError("noise_floor is no size, or dropped no list of groups")
