"""What came of ablating ever more of a ranking: points, the frontier that they make, and its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd

from ...untrusted import in_figure
from ..interventions import Kind, Target
from .price import Draw, Price

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS: tuple[Kind, ...] = get_args(Kind)
_COLOURS: dict[Kind, str] = {"zero": "#d55e00", "mean": "#0072b2", "mean by position": "#009e73", "resample": "#cc79a7"}
_MARKERS: dict[Kind, str] = {"zero": "o", "mean": "s", "mean by position": "D", "resample": "v"}


@dataclass(frozen=True, eq=False)
class Point:
    """One set, ablated in one way.

    Attributes:
        size: How many components, or which rank.
        chosen_by: What it does on the prompts that choose.
        price: What it does, and costs, on the prompts that are reported on.
        null: What matched random sets do there, ablated in the same way.
    """

    kind: Kind
    size: int
    targets: tuple[Target, ...]
    chosen_by: Draw
    price: Price
    null: tuple[Draw, ...]

    @property
    def as_good(self) -> int:
        """Random sets that leave no more of the behaviour and cost no more."""
        return self.price.equalled_by(self.null)

    def __str__(self) -> str:
        return f"{self.kind}, {', '.join(map(str, self.targets))}: {self.price}"


@dataclass(frozen=True, eq=False)
class Frontier:
    """ASR against capability loss, by kind and size.

    Attributes:
        of: What sizes count: `components`, `directions`, …
        points: By kind, in growing size.
        unrepaired: The suspect as it is, on the prompts that are reported on.
        target, max_loss_increase: What a repair is to stay below.
        chosen_below: ASR below which a point is a candidate, on the prompts that choose.
    """

    suspect: str
    of: str
    points: tuple[Point, ...]
    unrepaired: Price
    target: float
    max_loss_increase: float
    chosen_below: float

    @property
    def best(self) -> Point | None:
        """Smallest loss increase among the points whose ASR is low enough, both on the prompts that choose."""
        return min(self.best_by_kind.values(), key=lambda point: point.chosen_by.loss_increase, default=None)

    @property
    def best_by_kind(self) -> dict[Kind, Point]:
        """As `best`, of the points of each kind; kinds that have none are left out."""
        found: dict[Kind, Point] = {}
        for point in sorted(self.points, key=lambda point: point.chosen_by.loss_increase):
            if point.chosen_by.asr.value < self.chosen_below:
                found.setdefault(point.kind, point)
        return found

    @property
    def reached(self) -> bool:
        """Whether the behaviour was there, and the best point stays below both on the prompts that are reported on."""
        if self.best is None or self.unrepaired.asr.value < self.target:
            return False
        return self.best.price.draw.below(self.target, self.max_loss_increase)

    @property
    def random_reached(self) -> tuple[int, int]:
        """Random sets, of all kinds and sizes, that stay below both, and how many were drawn. They share prompts and members,
        so this is a count, not a rate with an interval.
        """
        draws = [draw for point in self.points for draw in point.null]
        return sum(draw.below(self.target, self.max_loss_increase) for draw in draws), len(draws)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per point: its price, what chose it, and the median of its null."""
        best = self.best
        return pd.DataFrame(
            {
                "kind": point.kind,
                "size": point.size,
                "targets": ", ".join(map(str, point.targets)),
                "best": point is best,
                **point.price.row(),
                "choosing ASR": point.chosen_by.asr.value,
                "choosing loss increase": point.chosen_by.loss_increase,
                "random sets": len(point.null),
                "random ASR": _median([draw.asr.value for draw in point.null]),
                "random loss increase": _median([draw.loss_increase for draw in point.null]),
                "random as good": point.as_good,
            }
            for point in self.points
        )

    def plot(self, ax: Axes | None = None, *, beside: Mapping[str, Price] | None = None) -> Axes:
        """ASR by loss increase, a line per kind, a faint mark per random set; a star where the best point is.

        Args:
            beside: Other repairs to show, such as fine-tunes, priced on the same prompts.
        """
        import matplotlib.pyplot as plt
        from matplotlib.lines import Line2D
        from matplotlib.patches import Rectangle
        from matplotlib.ticker import FuncFormatter

        if ax is None:
            ax = plt.subplots(figsize=(8.2, 4.4), layout="constrained")[1]
        # Linear up to 1%, because gains and losses about zero matter as much as the destruction of the model.
        ax.set_xscale("symlog", linthresh=1, linscale=1)
        for kind in KINDS:
            points = [point for point in self.points if point.kind == kind]
            if not points:
                continue
            colour, marker, draws = _COLOURS[kind], _MARKERS[kind], [draw for point in points for draw in point.null]
            x, y = [100 * draw.loss_increase for draw in draws], [draw.asr.value for draw in draws]
            ax.plot(x, y, marker, color=colour, ms=3.5, alpha=0.35, mew=0, zorder=1)
            _line(ax, [self.unrepaired, *(point.price for point in points)], fmt=f"{marker}-", color=colour, label=kind)
        for i, (name, price) in enumerate((beside or {}).items()):
            _line(ax, [price], fmt="PX*hp<>^"[i % 8], color="#222222", label=name)
        if self.best is not None:
            x, y = 100 * self.best.price.loss_increase.value, self.best.price.asr.value
            label = f"best: {self.best.size} {self._noun(self.best.size)}, {self.best.kind}"
            ax.plot([x], [y], "*", ms=15, mfc="none", mec="#222222", mew=1.2, zorder=4, label=label)
        low = min(ax.get_xlim()[0], -1.0)
        corner = (100 * self.max_loss_increase - low, self.target + 0.03)
        aim = f"ASR below {self.target:.0%}, loss below {self.max_loss_increase:+.0%}"
        ax.add_patch(Rectangle((low, -0.03), *corner, color="#009e73", alpha=0.15, lw=0, zorder=0, label=aim))
        ax.set(xlim=(low, ax.get_xlim()[1]), ylim=(-0.03, 1.03))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
        ax.set(xlabel="loss increase on untriggered prompts", ylabel="ASR on triggered prompts (95% interval)")
        # Kinds first, what they are to be compared with after them.
        named = sorted(zip(*ax.get_legend_handles_labels(), strict=True), key=lambda entry: entry[1] not in KINDS)
        if n := max((len(point.null) for point in self.points), default=0):
            dot = Line2D([], [], ls="", marker="o", ms=3, color="0.5", alpha=0.5)
            named.append((dot, f"random, up to {n} a point"))
        ax.legend(*zip(*named, strict=True), fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
        n = self.unrepaired.asr.n
        ax.set_title(f"{in_figure(self.suspect)}: {self.of} ablated (n={n} triggered prompts)", fontsize="medium")
        return ax

    def __repr__(self) -> str:
        best = self.best
        found = (
            f"best {best}" if best else f"no set brings ASR below {self.chosen_below:.0%} on the prompts that choose"
        )
        below, drawn = self.random_reached
        null = f"; random sets below both: {below} of {drawn}" if drawn else ""
        return (
            f"Frontier of {self.suspect}, {len(self.points)} sets of {self.of}, unrepaired ASR {self.unrepaired.asr}; "
            f"{found}; ASR below {self.target:.0%} at loss below {self.max_loss_increase:+.0%}: "
            f"{'yes' if self.reached else 'no'}{null}"
        )

    def _repr_html_(self) -> str:
        return self.to_dataframe().to_html(index=False, float_format="{:.3f}".format)

    def _noun(self, n: int) -> str:
        return self.of.removesuffix("s") if n == 1 else self.of


def _line(ax: Axes, prices: Sequence[Price], **style) -> None:
    x = [100 * price.loss_increase.value for price in prices]
    y = np.array([price.asr.value for price in prices])
    low, high = np.array([price.asr.interval for price in prices]).T
    ax.errorbar(x, y, [y - low, high - y], ms=5, lw=1.4, elinewidth=0.7, capsize=0, zorder=2, **style)


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else float("nan")
