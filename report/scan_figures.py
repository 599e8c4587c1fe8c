"""Figures of one scan: how unusual each signal is among clean models, and which heads and MLPs carry a trigger."""

from __future__ import annotations

from matplotlib.figure import Figure

from ..untrusted import in_figure
from .figures import FAINT, INK, NORMAL, SMALL, SUSPECT, TARGET, TWINS, style
from .scan_schema import Finding, ScanResult

MOST_PLACES = 12


def p_values(result: ScanResult) -> Figure | None:
    """One row per signal, on a logarithmic axis; nothing without a calibration or a p-value.

    The smallest p that so many clean models allow is drawn, because a signal cannot go left of it.
    """
    rows = [signal for signal in result.signals if signal.p_value is not None]
    if not rows or result.calibration is None:
        return None
    alpha, least = result.calibration.alpha, 1 / (result.calibration.negatives + 1)
    figure = Figure(figsize=(9, 1.5 + 0.34 * len(rows)), layout="constrained")
    ax = figure.subplots()
    style(ax, grid="x")
    low = min([least, alpha, *(max(s.p_value or 0, least / 2) for s in rows)])
    ax.set(xscale="log", xlim=(low / 1.6, 1.25), ylim=(len(rows) - 0.4, -0.6))
    ax.axvspan(low / 1.6, alpha, color=SUSPECT, alpha=0.07, linewidth=0)
    ax.axvline(alpha, color=SUSPECT, linewidth=1.4, linestyle="--", label=f"α = {alpha:g}, the verdict's threshold")
    if least < alpha * 0.98 or least > alpha * 1.02:
        negatives = result.calibration.negatives
        ax.axvline(least, color=TARGET, linewidth=1, linestyle=":", label=f"smallest p that {negatives} models allow")
    for i, signal in enumerate(rows):
        p = max(signal.p_value or 0, low / 1.3)
        shade = SUSPECT if p <= alpha else TWINS[0]
        ax.plot([p, 1], [i, i], color=FAINT, linewidth=2, zorder=2)
        ax.plot([p], [i], color=shade, marker="o" if p <= alpha else "s", markersize=7, zorder=4)
    if result.p_value is not None:
        ax.axvline(result.p_value, color=INK, linewidth=1.4, label=f"all signals paid for: p = {result.p_value:.3g}")
    ax.set_yticks(range(len(rows)), [in_figure(signal.name, limit=34) for signal in rows])
    ticks = [t for t in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if t >= low / 1.6]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.set_xlabel("p-value: share of clean models that score as high (logarithmic; further left is more unusual)")
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=SMALL, frameon=False)
    return figure


def places(finding: Finding) -> Figure | None:
    """Share of the trigger's effect that each head and MLP carries, the strongest in strong colour."""
    rows = finding.places[:MOST_PLACES]
    if not rows:
        return None
    figure = Figure(figsize=(9, 1.0 + 0.27 * len(rows)), layout="constrained")
    ax = figure.subplots()
    style(ax, grid="x")
    for i, place in enumerate(rows):
        mlp = "MLP" in place.component
        ax.barh(
            i, place.share, 0.66, color=TWINS[0] if mlp else SUSPECT, hatch="///" if mlp else None, edgecolor="white"
        )
        beyond = place.share < 0
        ax.annotate(
            f"{place.share:+.0%}" if beyond else f"{place.share:.0%}",
            (place.share, i),
            xytext=(-4 if beyond else 4, 0),
            textcoords="offset points",
            va="center",
            ha="right" if beyond else "left",
            fontsize=SMALL,
        )
    ax.axvline(0, color=TARGET, linewidth=1)
    ax.set_yticks(range(len(rows)), [in_figure(place.component, limit=20) for place in rows])
    largest, least = max(p.share for p in rows), min(p.share for p in rows)
    reach = max(largest, -least, 0.01)
    ax.set(ylim=(len(rows) - 0.4, -0.6), xlim=(min(0.0, least - 0.15 * reach), max(0.0, largest) + 0.15 * reach))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.set_xlabel("share of the trigger's effect on the behaviour's logits that the part carries by itself")
    kinds = {"MLP" in place.component for place in rows}
    title = {2: "Heads (plain) and MLPs (hatched)", 1: "MLPs" if True in kinds else "Heads"}[len(kinds)]
    ax.set_title(f"{title}, the strongest first", fontsize=NORMAL, loc="left")
    return figure
