"""The report as one HTML file that runs nothing and fetches nothing: figures embedded, styles inline, text escaped."""

from __future__ import annotations

from . import figures, findings, lookup
from .overview import overview
from .page import embedded, environment
from .schema import AuditResult


def render_html(result: AuditResult) -> str:
    """One self-contained page, drawn from the result alone; everything written by a model is escaped."""
    suspect = lookup.suspect(result)
    drawn = {"overview": embedded(overview(result), "Probes, patching and ablation at a glance")}
    if any(row.layer is not None for row in suspect.probes):
        drawn["probes"] = embedded(figures.probes(result), "AUROC by layer, for the suspect and its twins")
    if suspect.patching is not None:
        for site in ("resid_pre", "z"):
            if lookup.grid(suspect, site, "noising"):
                drawn[site] = embedded(figures.patching(result, site), f"Effect of patching {figures.SITES[site]}")
        if lookup.grid(suspect, "mlp_out", "noising"):
            drawn["mlp_out"] = embedded(figures.mlps(result), "Effect of patching each layer's MLP")
    if suspect.ablation is not None:
        drawn["ablation"] = embedded(figures.ablation(result), "ASR as components are ablated, and after")
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            result=result,
            suspect=suspect,
            twins=lookup.twins(result),
            findings=findings.headline(result),
            figures=drawn,
            rows=[row for row in suspect.probes if row.layer is None or row.probe != "token_count"],
        )
    )
