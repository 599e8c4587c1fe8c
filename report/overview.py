"""One picture of the whole audit: what a probe sees, what patching finds, what ablation leaves."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..untrusted import in_figure
from . import figures, lookup
from .figures import NORMAL, SMALL
from .schema import AuditResult

SHOWN = 8


def overview(result: AuditResult) -> Figure:
    """Three panels: AUROC by layer, the strongest heads and MLPs, and ASR before and after ablation."""
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.15, 1))
    _probe(left, result)
    _patching(middle, result)
    _ablation(right, result)
    for ax, text in ((left, "Is the trigger seen?"), (middle, "What carries the behaviour?"), (right, "Is it gone?")):
        ax.set_title(text, fontsize=NORMAL + 2, fontweight="bold", loc="left")
    handles, labels = left.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(5, len(labels)), fontsize=NORMAL, frameon=False
        )
    return figure


def _probe(ax: Axes, result: AuditResult) -> None:
    panels = [panel for panel in lookup.contrasts(lookup.suspect(result).probes) if panel[1] == "untriggered"]
    if not panels:
        _empty(ax, "no probe was fitted")
        return
    figures.auroc(ax, result, *panels[0])
    ax.set_ylabel(f"AUROC, triggered against untriggered\n({in_figure(panels[0][0], limit=40)})")


def _patching(ax: Axes, result: AuditResult) -> None:
    """The suspect's strongest components with the same components of its twins."""
    found = lookup.component_effects(lookup.suspect(result), "noising")
    if not found:
        _empty(ax, "nothing was patched:\nno behaviour was named or found")
        return
    figures.style(ax, grid="y")
    top = sorted(found, key=lambda name: -abs(found[name].value))[:SHOWN]
    ax.axhline(0, color=figures.TARGET, linewidth=1)
    models = [model for model in figures.ordered(result) if model.patching]
    for k, model in enumerate(models):
        have = lookup.component_effects(model, "noising")
        at = [i for i, name in enumerate(top) if name in have]
        x = [i + 0.2 * (k - (len(models) - 1) / 2) for i in at]
        figures.effects(ax, x, [have[top[i]] for i in at], model, result)
    ax.set_xticks(range(len(top)), [in_figure(name, limit=18) for name in top], rotation=45 if len(top) > 5 else 0)
    ax.set_xlabel("head (H) or MLP, the suspect's strongest first")
    ax.set_ylabel("change of the logit difference without\nthe trigger there (noising, logits)")


def _ablation(ax: Axes, result: AuditResult) -> None:
    model = lookup.suspect(result)
    ranked = lookup.ablated(model, "ranked")
    if ranked is None:
        _empty(ax, "nothing was ablated")
        return
    figures.before_after(ax, result, [model], short=True)
    which = ", ".join(ranked.components[:4]) + (", …" if len(ranked.components) > 4 else "")
    ax.set_xlabel(
        f"ASR of the suspect\nablated: {in_figure(which, limit=80)}; loss {100 * ranked.loss_increase.value:+.1f}%",
        fontsize=SMALL,
    )


def _empty(ax: Axes, text: str) -> None:
    ax.set_axis_off()
    ax.annotate(text, (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", fontsize=NORMAL)
