"""Scans in the terminal: a line for each model as it is done, then all of them together, or one of them in sentences.

Models' words come into every part. Whatever could steer a terminal is shown as a sign, and nothing is taken for markup.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..untrusted import visible
from . import scan_findings as say
from .scan_schema import Finding, ScanResult
from .text import quoted, rate

WIDEST = 60  # cells of a model's name
LONGEST = 200  # cells of what is said of it
STYLES = {
    "backdoored": "bold red",
    "inconclusive": "bold yellow",
    "no evidence": "bold blue",  # never green: nothing found is not clean
    "could not be examined": "bold magenta",
}


def name_width(models: Sequence[str]) -> int:
    """Cells that the names need in a table of these models, `WIDEST` at most."""
    return min(WIDEST, max((cell_len(visible(model)) for model in models), default=0))


def scan_header(width: int) -> str:
    return f"{'verdict':<21}  {'p':>6}  {'time':>9}  {set_cell_size('model', width)}  why"


def scan_row(result: ScanResult, width: int) -> str:
    """One line under `scan_header(width)`; a name that is wider loses its middle."""
    time = "–" if result.effort is None else say.duration(result.effort.seconds)
    name = set_cell_size(_fitted(result.model, width), width)
    line = f"{result.verdict:<21}  {say.chance(result.p_value):>6}  {time:>9}  {name}  {_fitted(_why(result), LONGEST)}"
    return line.rstrip()


def scan_summary(results: Sequence[ScanResult]) -> Group:
    """Something `rich` can print under the lines: one model in sentences, many counted.

    Commands stand on one line each whatever the width, so print it with `crop=False`.
    """
    return Group(*(_sentences(results[0]) if len(results) == 1 else _counted(results)))


def _why(result: ScanResult) -> str:
    finding = say.chief(result)
    if finding is None:
        return visible(result.reason)
    more = len(result.findings) - 1
    known = "" if finding.nature == "harmful" else f" (judged {finding.nature})"
    said = f"“{say.trigger(finding)}” releases {quoted(finding.behaviour)}{known} in {rate(finding.rate, n=True)}"
    return said + (f", and {more} more" if more else "")


def _fitted(text: str, width: int) -> str:
    """Made visible, and in so many cells at most: the ends tell paths apart, so the middle goes."""
    text = visible(text)
    if cell_len(text) <= width:
        return text
    head = max(0, width // 3 - 1)
    tail = width - head - 1
    end = next((text[i:] for i in range(max(0, len(text) - tail), len(text)) if cell_len(text[i:]) <= tail), "")
    return f"{set_cell_size(text, head)}…{end}"


def _counted(results: Sequence[ScanResult]) -> list[RenderableType]:
    counts = {verdict: sum(result.verdict == verdict for result in results) for verdict in say.EXIT_CODES}
    parts = [
        part for verdict, count in counts.items() if count for part in (", ", f"{count} ", (verdict, STYLES[verdict]))
    ][1:]
    said: list[RenderableType] = [Text(), Text.assemble(f"{len(results)} models", ": " if parts else "", *parts)]
    if counts["no evidence"]:
        said.append(Text("No evidence within the budget that was searched is not the same as clean."))
    return said


def _sentences(result: ScanResult) -> list[RenderableType]:
    head = [
        Text(),
        Text.assemble((visible(result.model, limit=120), "bold"), ": ", (result.verdict, STYLES[result.verdict])),
        Text(visible(result.reason, limit=600)),
        Text(say.meaning(result)),
    ]
    found = [line for finding in say.ordered(result) for line in (Text(), *_found(finding))]
    signals = [Text(), _signals(result)] if result.signals else []
    notes = [Text(visible(note, limit=600), style="yellow") for note in result.notes]
    steps = [Text(f"  {visible(step)}", no_wrap=True, overflow="ignore") for step in result.next_steps]
    return [*head, *found, *signals, *notes, *([Text("\nNext:"), *steps] if steps else [])]


def _found(finding: Finding) -> list[Text]:
    style = STYLES["backdoored"] if finding.nature == "harmful" else "bold"
    said = [
        Text.assemble((f"{say.judged(finding).capitalize()}. ", style), say.release(finding)),
        Text(f"{say.shows(finding)} {say.nearest(finding)}".rstrip()),
        Text(f"Judged {finding.nature}: {visible(finding.why, limit=300)}"),
    ]
    if finding.places:
        top = ", ".join(f"{visible(p.component, limit=12)} {p.share:.0%}" for p in finding.places[:5])
        said.append(Text(f"Where it lives, share of the trigger's effect: {top}"))
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
