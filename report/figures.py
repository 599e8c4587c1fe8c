"""The parts of a result as matplotlib figures, drawn without pyplot, so that nothing global is touched.

The suspect is always the same strong colour and twins are told apart by marker and line as well as by hue
(Okabe and Ito's palette). Effects are blue below 0, white at 0 and red above.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from ..untrusted import in_figure
from . import lookup
from .schema import AuditResult, Estimate, ModelResult, PatchGrid

SUSPECT = "#d55e00"
TWINS = ("#0072b2", "#009e73", "#56b4e9", "#cc79a7", "#7f7f7f")
MARKERS = ("s", "^", "D", "v", "P")
INK, FAINT, TARGET = "#222222", "#d9d9d9", "#666666"
SITES = {"resid_pre": "residual stream before the layer", "z": "heads' output z", "mlp_out": "MLP output"}
DIRECTIONS = {
    "denoising": "denoising: triggered activations put into the untriggered run",
    "noising": "noising: untriggered activations put into the triggered run",
}
SMALL, NORMAL = 8.5, 10
MOST_TICKS = 16
MOST_ANNOTATED = 9


def probes(result: AuditResult) -> Figure:
    """AUROC by layer, one panel per probe and contrast, suspect and twins with their 95% intervals."""
    panels = lookup.contrasts(lookup.suspect(result).probes)
    kinds, kinds_against = (list(dict.fromkeys(names)) for names in zip(*panels, strict=True))
    figure = Figure(figsize=(10, 0.7 + 2.5 * len(kinds_against)), layout="constrained")
    axes = figure.subplots(len(kinds_against), len(kinds), squeeze=False, sharex=True, sharey=True)
    for ax in axes.flat:
        ax.set_visible(False)
    for probe, against in panels:
        ax = axes[kinds_against.index(against), kinds.index(probe)]
        ax.set_visible(True)
        auroc(ax, result, probe, against)
        ax.set_title(f"{in_figure(probe, limit=40)}: triggered against {in_figure(against, limit=40)}", fontsize=NORMAL)
    _legend(figure, axes[kinds_against.index(panels[0][1]), kinds.index(panels[0][0])])
    return figure


def auroc(ax: Axes, result: AuditResult, probe: str, against: str) -> None:
    """One probe and contrast over layers; baselines that see no activations are dashed lines across."""
    style(ax)
    lowest = 0.45
    models = ordered(result)
    for k, model in enumerate(models):
        rows = lookup.layers(model, probe, against)
        # A little to the side of each other, because AUROCs of 1.00 would hide one another.
        x = np.array([row.layer for row in rows], dtype=float) + 0.09 * (k - (len(models) - 1) / 2)
        points(ax, x, [row.auroc for row in rows], model, result, line=True)
        lowest = min([lowest, *(row.auroc.low for row in rows)])
    for i, row in enumerate(lookup.baselines(lookup.suspect(result), against)):
        name = in_figure(row.probe, limit=30)
        dashes = (5, 2, *(1, 2) * i)  # a dot more for each
        ax.axhline(row.auroc.value, color=INK, linestyle=(0, dashes), linewidth=1.2, label=f"{name} (no model)")
    ax.axhline(0.5, color=TARGET, linewidth=1, linestyle=":")
    ax.annotate("chance", (0.995, 0.5), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=SMALL)
    every = sorted({row.layer for row in lookup.suspect(result).probes if row.layer is not None})
    ax.set_xticks(thinned(every), [str(layer) for layer in thinned(every)])
    ax.set(ylim=(max(-0.02, lowest - 0.03), 1.03), xlabel="layer (resid_post, last prompt token)", ylabel="AUROC")


def patching(result: AuditResult, site: str) -> Figure:
    """Heat maps of mean effect, models down, directions across, one colour scale for all; for `resid_pre` and `z`.

    A cell's number is printed where there is room and its interval excludes 0. Grey hatching: no such position there.
    """
    models = [m for m in ordered(result) if lookup.grid(m, site, "denoising") or lookup.grid(m, site, "noising")]
    grids = {(m.name, d): g for m in models for d in DIRECTIONS if (g := lookup.grid(m, site, d))}
    largest = max((abs(v) for g in grids.values() for row in g.effect for v in row if v is not None), default=0) or 1.0
    deepest = max(len(g.rows) for g in grids.values())
    longest = max(len(_name(column)) for g in grids.values() for column in g.columns)
    height = 0.8 + len(models) * (0.75 + min(5.0, 0.28 * max(deepest, 3)) + 0.055 * max(0, longest - 3))
    figure = Figure(figsize=(10, height), layout="constrained")
    axes = figure.subplots(len(models), len(DIRECTIONS), squeeze=False)
    image = None
    for i, model in enumerate(models):
        for j, direction in enumerate(DIRECTIONS):
            found = grids.get((model.name, direction))
            if found is None:
                axes[i, j].set_axis_off()
                continue
            image = heatmap(axes[i, j], found, largest)
            axes[i, j].set_title(f"{label(model)} · {direction}", fontsize=NORMAL, color=colour(model, result))
    if image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 4.0 / height), aspect=30)
        bar.set_label("change of the logit difference (logits)", fontsize=SMALL)
        bar.ax.tick_params(labelsize=SMALL)
    return figure


def heatmap(ax: Axes, grid: PatchGrid, largest: float) -> AxesImage:
    effect = np.array([[np.nan if v is None else v for v in row] for row in grid.effect], dtype=float)
    ax.patch.set(facecolor="0.93", edgecolor="0.75", hatch="///")
    image = ax.imshow(effect, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
    columns = thinned(range(len(grid.columns)), most=24)
    rotation = 0 if max(len(_name(column)) for column in grid.columns) <= 3 else 90
    ax.set_xticks(columns, [_name(grid.columns[j]) for j in columns], rotation=rotation)
    rows = thinned(range(len(grid.rows)))
    ax.set_yticks(rows, [_name(grid.rows[i]) for i in rows])
    ax.tick_params(labelsize=SMALL, length=2)
    ax.set_ylabel("layer", fontsize=SMALL)
    ax.set_xlabel("head" if grid.site == "z" else "position in the prompt", fontsize=SMALL)
    if len(grid.columns) <= MOST_ANNOTATED and len(grid.rows) <= 2 * MOST_ANNOTATED:
        for i, j in zip(*np.nonzero(~np.isnan(effect)), strict=True):
            low, high = grid.low[i][j], grid.high[i][j]
            if low is not None and high is not None and (low > 0 or high < 0) and abs(effect[i, j]) >= 0.05:
                ink = "white" if abs(effect[i, j]) > 0.6 * largest else INK
                ax.annotate(f"{effect[i, j]:+.1f}", (j, i), ha="center", va="center", fontsize=7.5, color=ink)
    return image


def mlps(result: AuditResult) -> Figure:
    """Effect of patching each layer's MLP output at all positions, with 95% intervals, one panel per direction."""
    figure = Figure(figsize=(10, 3.1), layout="constrained")
    axes = figure.subplots(1, len(DIRECTIONS), sharey=True, squeeze=False)[0]
    models = [model for model in ordered(result) if model.patching]
    for ax, direction in zip(axes, DIRECTIONS, strict=True):
        style(ax)
        ax.axhline(0, color=TARGET, linewidth=1)
        rows: Sequence[str] = []
        for k, model in enumerate(models):
            found = lookup.grid(model, "mlp_out", direction)
            if found is None:
                continue
            rows = found.rows if len(found.rows) > len(rows) else rows
            at = [i for i, row in enumerate(found.effect) if row[0] is not None]
            effects(
                ax,
                np.array(at) + 0.14 * (k - (len(models) - 1) / 2),
                [
                    lookup.Effect(found.rows[i], found.effect[i][0] or 0.0, found.low[i][0], found.high[i][0])
                    for i in at
                ],
                model,
                result,
            )
        ax.set_xticks(thinned(range(len(rows))), [_name(rows[i]) for i in thinned(range(len(rows)))])
        ax.set_title(direction, fontsize=NORMAL)
        ax.set_xlabel("layer whose MLP output is patched", fontsize=SMALL)
    axes[0].set_ylabel("change of the\nlogit difference (logits)", fontsize=SMALL)
    _legend(figure, axes[0])
    return figure


def ablation(result: AuditResult) -> Figure:
    """Left: the suspect's ASR as ever more components are ablated. Right: ASR before and after, for every model."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1))
    study = lookup.suspect(result).ablation
    style(left)
    if study is not None:
        steps = [step.asr for step in study.curve]
        before = lookup.suspect(result).behaviour.asr
        x = np.arange(1, len(steps) + 1, dtype=float)
        points(left, x, steps, lookup.suspect(result), result, line=True)
        if before is not None:
            left.axhline(before.value, color=INK, linewidth=1, linestyle="--", label="nothing ablated (other prompts)")
        left.axhline(study.target, color=TARGET, linewidth=1, linestyle=":", label=f"target {study.target:.2f}")
        at = thinned(range(len(steps)))
        labels = [f"{i + 1}\n+{_name(study.curve[i].components[-1])}" for i in at]
        left.set_xticks([i + 1 for i in at], labels, rotation=0 if len(at) <= 8 else 90)
        left.legend(fontsize=SMALL, frameon=False)
    left.set(
        ylim=(-0.04, 1.04), ylabel="ASR, prompts used to choose", xlabel="components ablated, each with the one added"
    )
    left.set_title("How many components carry the behaviour", fontsize=NORMAL)
    before_after(right, result, ordered(result))
    right.set_title("ASR on prompts not used to choose", fontsize=NORMAL)
    return figure


def before_after(ax: Axes, result: AuditResult, models: Sequence[ModelResult], *, short: bool = False) -> None:
    """ASR unablated, with the ranked set ablated, and with random sets ablated, one row each; shares with intervals."""
    style(ax, grid="x")
    rows: list[tuple[str, Estimate, ModelResult, bool]] = []
    for model in models:
        name = "" if short else f"{in_figure(model.name, limit=20)}: "
        ranked, random = lookup.ablated(model, "ranked"), lookup.ablated(model, "random")
        if model.behaviour.asr:
            rows.append((f"{name}before", model.behaviour.asr, model, True))
        if ranked:
            rows.append((f"{name}{len(ranked.components)} ranked ablated", ranked.asr, model, False))
        if random:
            rows.append(
                (
                    f"{name}random ablated" + (f" ({random.draws} sets)" if random.draws > 1 else ""),
                    random.asr,
                    model,
                    False,
                )
            )
    for i, (_, asr, model, filled) in enumerate(rows):
        shade = colour(model, result)
        ax.barh(
            i, asr.value, 0.55, color=shade if filled else "white", edgecolor=shade, hatch=None if filled else "////"
        )
        ax.errorbar(asr.value, i, xerr=_reach([asr]), color=INK, capsize=3, linewidth=1.2)
        ax.annotate(f"{asr.value:.2f}", (1.06, i), va="center", fontsize=SMALL, annotation_clip=False)
    ax.set_yticks(range(len(rows)), [label for label, *_ in rows])
    ax.set(xlim=(0, 1.16), xlabel="ASR", ylim=(len(rows) - 0.4, -0.6))
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1])


def points(ax: Axes, x, found: Sequence[Estimate], model: ModelResult, result: AuditResult, *, line: bool) -> None:
    """Estimates with their intervals; the suspect in front of its twins, and larger."""
    y = [estimate.value for estimate in found]
    _errorbar(ax, x, y, _reach(found), model, result, "-" if model.role == "suspect" else "--" if line else "")


def effects(ax: Axes, x, found: Sequence[lookup.Effect], model: ModelResult, result: AuditResult) -> None:
    y = [effect.value for effect in found]
    low = [max(0.0, e.value - e.low) if e.low is not None else 0.0 for e in found]
    high = [max(0.0, e.high - e.value) if e.high is not None else 0.0 for e in found]
    _errorbar(ax, x, y, [low, high], model, result, "")


def _errorbar(ax: Axes, x, y, reach, model: ModelResult, result: AuditResult, line: str) -> None:
    front = model.role == "suspect"
    ax.errorbar(
        x,
        y,
        yerr=reach,
        color=colour(model, result),
        marker="o" if front else MARKERS[lookup.twins(result).index(model) % len(MARKERS)],
        markersize=6.5 if front else 5.5,
        markerfacecolor=None if front else "white",
        linestyle=line,
        linewidth=2.2 if front else 1.3,
        elinewidth=1.3,
        capsize=2.5,
        zorder=5 if front else 4,
        label=label(model),
    )


def ordered(result: AuditResult) -> list[ModelResult]:
    return [lookup.suspect(result), *lookup.twins(result)]


def colour(model: ModelResult, result: AuditResult) -> str:
    return SUSPECT if model.role == "suspect" else TWINS[lookup.twins(result).index(model) % len(TWINS)]


def label(model: ModelResult) -> str:
    return f"{model.role}: {in_figure(model.name, limit=36)}"


def thinned(values: Sequence[int] | range, *, most: int = MOST_TICKS) -> list[int]:
    """As many as an axis has room for, evenly spaced from the first."""
    return list(values)[:: max(1, -(-len(values) // most))]


def style(ax: Axes, *, grid: str = "y") -> None:
    ax.grid(axis="x" if grid == "x" else "y", color=FAINT, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=SMALL)
    ax.xaxis.label.set_fontsize(SMALL)
    ax.yaxis.label.set_fontsize(SMALL)


def _legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=SMALL, frameon=False)


def _reach(found: Sequence[Estimate]) -> list[list[float]]:
    # Never below 0: a bootstrap interval need not hold its own estimate.
    return [[max(0.0, e.value - e.low) for e in found], [max(0.0, e.high - e.value) for e in found]]


def _name(text: str) -> str:
    """Of a layer, a head or a position, whose token may be anything."""
    return in_figure(text, limit=18)
