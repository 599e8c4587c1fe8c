"""A circuit: which places carry the behaviour, with every figure that says how far to believe it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from ...models.interval import Interval
from ...untrusted import in_figure
from ..components import Component
from .places import AnyPlace
from .saved import Grain, SavedCircuit, SavedPlace, SavedShare

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = 24


@dataclass
class Repeated:
    """What searches on other pairs chose.

    Attributes:
        searches: How many there were.
        short: How many of them fell short of the target or of their budget; what they chose says nothing and is not counted.
        chosen: How many of the others chose a place.
    """

    searches: int = 0
    short: int = 0
    chosen: Counter[AnyPlace] = field(default_factory=Counter)

    def add(self, found: Iterable[AnyPlace] | None) -> None:
        """One more search; None if it fell short."""
        self.searches += 1
        self.short += found is None
        self.chosen.update(found or ())

    def share(self, place: AnyPlace) -> float:
        """Of the searches that count, those that chose the place; NaN where none counts."""
        counted = self.searches - self.short
        return self.chosen[place] / counted if counted else float("nan")


@dataclass(frozen=True, eq=False)
class Circuit:
    """Places, or edges, whose clean values are enough for the behaviour. All metrics are of test pairs, `[pair]`.

    Attributes:
        weights: The suspect's `weights_hash`.
        by: What its `places` are.
        n_places: How many there are in the model.
        target: Faithfulness that the search had to reach on its own pairs.
        pruned: Whether nothing could be dropped any more; if not, the budget ran out before.
        reached: Whether the target was reached on the validation pairs; if not, the ranking lacks what is needed.
        clean, corrupted: Metric with every place clean, and with none.
        circuit, complement: Metric with only the circuit clean, and with all but the circuit.
        without: Metric of the circuit less one of its places, `[place, pair]`.
        null: Metric of random sets with as many places of each kind, `[draw, pair]`.
        curve: Faithfulness on the validation pairs by number of places, before pruning.
        resampled, other_half: The search repeated on the validation pairs drawn again, and on other halves of all pairs.
    """

    suspect: str
    weights: str
    by: Grain
    places: tuple[AnyPlace, ...]
    n_places: int
    target: float
    pruned: bool
    reached: bool
    metric: str
    groups: tuple[str, ...]
    clean: Float[np.ndarray, "pair"]
    corrupted: Float[np.ndarray, "pair"]
    circuit: Float[np.ndarray, "pair"]
    complement: Float[np.ndarray, "pair"]
    without: Float[np.ndarray, "place pair"]
    null: Float[np.ndarray, "draw pair"]
    curve: xr.DataArray
    resampled: Repeated
    other_half: Repeated
    seed: int

    @property
    def components(self) -> list[Component]:
        """Heads and MLPs that take part; of edges, those that write one."""
        return list(dict.fromkeys(component for place in self.places for component in place.components))

    @cached_property
    def faithfulness(self) -> Interval:
        """Share of the gap that is left when all other places are corrupted; 1 is the whole behaviour."""
        return self._share(self.circuit)

    @cached_property
    def completeness(self) -> Interval:
        """Share of the gap that is gone when the circuit alone is corrupted; 1 leaves nothing to the rest of the model."""
        return self._share(self.clean + self.corrupted - self.complement)

    @cached_property
    def minimality(self) -> dict[AnyPlace, Interval]:
        """By place, the share of the gap that the circuit loses without it."""
        return {
            place: self._share(self.circuit - row + self.corrupted)
            for place, row in zip(self.places, self.without, strict=True)
        }

    @cached_property
    def random(self) -> Float[np.ndarray, "draw"]:
        """Faithfulness of the random sets."""
        return (self.null - self.corrupted).mean(1) / (self.clean - self.corrupted).mean()

    @property
    def by_group(self) -> pd.DataFrame:
        """The metric on every test pair."""
        columns = {"clean": self.clean, "circuit": self.circuit, "complement": self.complement}
        return pd.DataFrame({"group": self.groups, **columns, "corrupted": self.corrupted})

    def to_dataframe(self) -> pd.DataFrame:
        """One row per place."""
        return pd.DataFrame(
            {
                "place": str(place),
                "share lost without it": share.value,
                "low": share.low,
                "high": share.high,
                "chosen again, pairs resampled": self.resampled.share(place),
                "chosen again, another half": self.other_half.share(place),
            }
            for place, share in self.minimality.items()
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Faithfulness by number of places while the circuit grew, the pruned circuit on test pairs, and its null."""
        import matplotlib.pyplot as plt
        from matplotlib.ticker import MaxNLocator

        if ax is None:
            ax = plt.subplots(figsize=(5.2, 3.6), layout="constrained")[1]
        ax.plot(self.curve["places"], self.curve, "o-", color="#2c7fb8", ms=4, label="highest-ranked, validation pairs")
        share, n = self.faithfulness, len(self.places)
        ax.errorbar(
            [n], [share.value], [[share.value - share.low], [share.high - share.value]],
            fmt="D", color="#c0392b", capsize=3, label=f"circuit, {share.n} test pairs",
        )  # fmt: skip
        if len(self.random):
            ax.plot(
                [n] * len(self.random), self.random, "_", color="0.5", ms=10, label=f"{len(self.random)} random sets"
            )
        ax.axhline(self.target, color="0.7", lw=0.8, ls=":")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(xlabel=f"{self._noun} kept clean, of {self.n_places}", ylabel="faithfulness (share of the gap)")
        ax.set_title(f"circuit of {in_figure(self.suspect)}: {n} of {self.n_places} {self._noun}", fontsize="medium")
        ax.legend(fontsize="small")
        return ax

    def save(self, path: str | Path) -> Path:
        """Write the places and the figures as JSON, under a temporary name first.

        Raises:
            OutputError: The file cannot be written.
        """
        path = Path(path)
        SavedCircuit(
            suspect=self.suspect,
            weights=self.weights,
            metric=self.metric,
            seed=self.seed,
            target=self.target,
            by=self.by,
            pruned=self.pruned,
            reached=self.reached,
            places=[
                SavedPlace(**place.described, lost_without=share.value)  # type: ignore[arg-type]
                for place, share in self.minimality.items()
            ],
            n_places=self.n_places,
            faithfulness=SavedShare(**vars(self.faithfulness)),
            completeness=SavedShare(**vars(self.completeness)),
            random_faithfulness=self.random.tolist(),
        ).write(path)
        return path

    def __repr__(self) -> str:
        beaten = int((self.random >= self.faithfulness.value).sum())
        null = f", {beaten} of {len(self.random)} random sets as faithful" if len(self.random) else ""
        shown = [str(place) for place in self.places[:_SHOWN]]
        shown += [f"and {len(self.places) - _SHOWN} more"] * (len(self.places) > _SHOWN)
        return (
            f"Circuit of {self.suspect}, {len(self.places)} of {self.n_places} {self._noun}"
            f"{'' if self.pruned else ' (not pruned to the end)'}{'' if self.reached else ' (short of the target)'}: {', '.join(shown)}; faithfulness {self.faithfulness}{null}; completeness {self.completeness}"
        )

    @property
    def _noun(self) -> str:
        return "edges" if self.by == "edge" else "places"

    def _repr_html_(self) -> str:
        return self.to_dataframe().to_html(index=False, float_format="{:.2f}".format)

    def _share(self, measured: Float[np.ndarray, "pair"], *, resamples: int = 2000) -> Interval:
        gained, gap = measured - self.corrupted, self.clean - self.corrupted
        n = len(gap)
        drawn = np.random.default_rng(self.seed).multinomial(n, np.full(n, 1 / n), size=resamples)
        low, high = np.quantile((drawn @ gained) / (drawn @ gap), (0.025, 0.975))
        return Interval(float(gained.mean() / gap.mean()), float(low), float(high), n)
