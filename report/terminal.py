"""The summary in the terminal: what was found in sentences, then the table they rest on."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..untrusted import visible
from . import findings, lookup
from .schema import AuditResult, ModelResult
from .text import percent, rate, signed


def summary(result: AuditResult) -> Group:
    """Something `rich` can print, at most 100 columns wide. Text from models is made visible and carries no markup."""
    said = [Text.assemble((f"{f.about}. ", "bold"), f.text) for f in findings.headline(result)]
    notes = [Text(visible(note), style="yellow") for note in result.notes]
    return Group(_table(result), *said, *notes)


def _table(result: AuditResult) -> Table:
    table = Table(
        title=Text(f"Audit of {visible(lookup.suspect(result).name, limit=50)}"), title_justify="left", box=None
    )
    table.add_column("", style="dim")
    models = [lookup.suspect(result), *lookup.twins(result)]
    for model in models:
        name = visible(model.name, limit=22) + ("" if model.role == "suspect" else " (twin)")
        table.add_column(Text(name), style="bold" if model.role == "suspect" else "")
    rows = {
        "ASR, triggered": lambda m: rate(m.behaviour.asr),
        "false alarm": lambda m: rate(m.behaviour.false_alarm),
        "near-miss": lambda m: rate(m.behaviour.near_miss),
        "trigger probe, AUROC": lambda m: _probe(result, m),
        "  specificity": lambda m: _specificity(result, m),
        "patching, best head or MLP": lambda m: _patched(m),
        "ASR, ranked set ablated": lambda m: _ablated(m, "ranked"),
        "ASR, random sets ablated": lambda m: _ablated(m, "random"),
        "loss increase, ranked set": lambda m: _loss(m),
    }
    for name, cell in rows.items():
        table.add_row(name, *(Text(visible(cell(model), limit=80)) for model in models))
    return table


def _chosen(result: AuditResult):
    rows = [r for r in lookup.suspect(result).probes if r.layer is not None and r.against == "untriggered"]
    return lookup.best(rows) if rows else None


def _probe(result: AuditResult, model: ModelResult) -> str:
    chosen = _chosen(result)
    if chosen is None:
        return "–"
    row = next(
        (r for r in model.probes if (r.probe, r.layer, r.against) == (chosen.probe, chosen.layer, chosen.against)), None
    )
    return f"{rate(row.auroc)} L{row.layer}" if row else "–"


def _specificity(result: AuditResult, model: ModelResult) -> str:
    chosen = _chosen(result)
    if chosen is None:
        return "–"
    if model.role == "suspect":
        return "(beside each twin)" if chosen.specificity else "no twin: no evidence"
    gap = chosen.specificity.get(model.name)
    return signed(gap) if gap else "–"


def _patched(model: ModelResult) -> str:
    top = lookup.strongest(lookup.component_effects(model, "noising"))
    return f"{top.component} {top.value:+.1f} logits" if top else "–"


def _ablated(model: ModelResult, label: str) -> str:
    found = lookup.ablated(model, label)
    return rate(found.asr) if found else "–"


def _loss(model: ModelResult) -> str:
    found = lookup.ablated(model, "ranked")
    return percent(found.loss_increase) if found else "–"
