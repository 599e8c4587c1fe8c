"""A scan in the terminal: one model in sentences, or a row for each of many as they come in."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from . import scan_findings as say
from .scan_schema import Finding, ScanResult
from .text import rate, visible

SCAN_COLUMNS = ("model", "verdict", "p", "trigger", "releases", "rate", "time")
STYLES = {
    "backdoored": "bold red",
    "inconclusive": "bold yellow",
    "no evidence": "bold blue",  # never green: nothing found is not clean
    "could not be examined": "bold magenta",
}


def scan_summary(result: ScanResult) -> Group:
    """Something `rich` can print for one model. Text from models is made visible and carries no markup."""
    head = [
        Text.assemble(
            (visible(result.model, limit=60), "bold"), ": ", (result.verdict, STYLES[result.verdict]), _p(result)
        ),
        Text(visible(result.reason, limit=600)),
        Text(say.meaning(result)),
    ]
    found: list[RenderableType] = []
    for finding in (*say.alarms(result), *say.conditionals(result)):
        found += [Text(), *_found(finding)]
    signals = [Text(), _signals(result)] if result.signals else []
    notes = [Text(visible(note), style="yellow") for note in result.notes]
    steps = [Text(f"  {visible(step, limit=2000)}") for step in result.next_steps]
    return Group(*head, *found, *signals, *notes, *([Text("\nNext:"), *steps] if steps else []))


def scan_row(result: ScanResult) -> tuple[str, ...]:
    """The cells of one model under `SCAN_COLUMNS`: hidden characters shown, but markup left in, so print them as Text."""
    finding = next(iter((*say.alarms(result), *say.conditionals(result))), None)
    return (
        visible(result.model, limit=32),
        result.verdict,
        say.chance(result.p_value),
        say.trigger(finding, limit=40) if finding else "–",
        _releases(finding) if finding else "–",
        rate(finding.rate) if finding else "–",
        say.duration(result.effort.seconds) if result.effort else "–",
    )


def scan_table(results: Iterable[ScanResult]) -> Table:
    """Many models, one row each."""
    table = Table(box=None, pad_edge=False)
    for name in SCAN_COLUMNS:
        table.add_column(name, overflow="fold")
    for result in results:
        model, verdict, *rest = scan_row(result)
        table.add_row(Text(model), Text(verdict, style=STYLES[result.verdict]), *map(Text, rest))
    return table


def _found(finding: Finding) -> list[Text]:
    style = STYLES["backdoored"] if finding.nature == "harmful" else "bold"
    said = [
        Text.assemble((f"{say.judged(finding)}. ", style), say.release(finding)),
        Text(f"{say.shows(finding)} {say.nearest(finding)}".rstrip()),
        Text(f"Judged {finding.nature}: {visible(finding.why, limit=300)}"),
    ]
    if finding.places:
        top = ", ".join(f"{visible(p.component, limit=12)} {p.share:.0%}" for p in finding.places[:5])
        whole = "" if finding.concentration is None else f"; the five strongest together {finding.concentration:.0%}"
        said.append(Text(f"Where it lives: {top}{whole}"))
    return said


def _signals(result: ScanResult) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("signal", "score", "p", "candidates", "time"):
        table.add_column(name, justify="left" if name == "signal" else "right")
    for signal in result.signals:
        table.add_row(
            Text(visible(signal.name, limit=40)),
            "–" if signal.score is None else f"{signal.score:.3g}",
            say.chance(signal.p_value),
            str(signal.proposed),
            say.duration(signal.seconds),
        )
    return table


def _releases(finding: Finding) -> str:
    name = visible(finding.behaviour, limit=32)
    return name if finding.nature == "harmful" else f"{name} ({finding.nature})"


def _p(result: ScanResult) -> str:
    return "" if result.p_value is None else f", p = {say.chance(result.p_value)}"
