"""The report as one HTML file that runs nothing and fetches nothing: figures embedded, styles inline, text escaped."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from . import figures, findings, lookup, text
from .overview import overview
from .schema import AuditResult


def render_html(result: AuditResult) -> str:
    """One self-contained page, drawn from the result alone; everything written by a model is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "rate": lambda found: text.rate(found, n=True),
        "signed": text.signed,
        "percent": text.percent,
        "shown": _shown,
    }
    suspect = lookup.suspect(result)
    drawn = {"overview": _embedded(overview(result), "Probes, patching and ablation at a glance")}
    if any(row.layer is not None for row in suspect.probes):
        drawn["probes"] = _embedded(figures.probes(result), "AUROC by layer, for the suspect and its twins")
    if suspect.patching is not None:
        for site in ("resid_pre", "z"):
            if lookup.grid(suspect, site, "noising"):
                drawn[site] = _embedded(figures.patching(result, site), f"Effect of patching {figures.SITES[site]}")
        if lookup.grid(suspect, "mlp_out", "noising"):
            drawn["mlp_out"] = _embedded(figures.mlps(result), "Effect of patching each layer's MLP")
    if suspect.ablation is not None:
        drawn["ablation"] = _embedded(figures.ablation(result), "ASR as components are ablated, and after")
    return environment.get_template("report.html.j2").render(
        result=result,
        suspect=suspect,
        twins=lookup.twins(result),
        findings=findings.headline(result),
        figures=drawn,
        rows=[row for row in suspect.probes if row.layer is None or row.probe != "token_count"],
    )


def _embedded(figure: Figure, alt: str) -> Markup:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(alt, data)


def _shown(words: str, limit: int = 400) -> Markup:
    """Model-written text: escaped, and hidden characters set apart as signs."""
    words = words if len(words) <= limit else words[:limit] + "…"
    parts = (
        Markup("<span class=sign>{}</span>").format(part) if sign else escape(part) for sign, part in text.pieces(words)
    )
    return Markup("").join(parts)
