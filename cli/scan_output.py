"""What `scan` prints and writes: a line per model, or one document for all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..report.scan_schema import ScanResult


class Format(StrEnum):
    table = "table"
    json = "json"
    sarif = "sarif"
    html = "html"


FILES = {Format.json: "results.json", Format.sarif: "results.sarif", Format.html: "report.html"}
_NOT_CLEAN = "No evidence within the budget that was searched is not the same as clean."


def header(width: int) -> str:
    return f"{'verdict':<21}  {'p':>6}  {'seconds':>7}  {'model':<{width}}  why"


def row(result: ScanResult, width: int) -> str:
    """One line. A model's own words come into it, so whatever could steer a terminal is shown as a sign."""
    from ..report.text import visible

    p = "–" if result.p_value is None else f"{result.p_value:.4f}"
    seconds = "–" if result.effort is None else f"{result.effort.seconds:.0f}"
    name = visible(result.model)
    return f"{result.verdict:<21}  {p:>6}  {seconds:>7}  {name:<{width}}  {_why(result)}".rstrip()


def summary(results: Sequence[ScanResult], out: Path | None, *, sharded: bool) -> str:
    verdicts = [result.verdict for result in results]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts)))
    said = [f"\n{len(results)} model{'' if len(results) == 1 else 's'}" + (f": {counts}" if counts else "")]
    if "no evidence" in verdicts:
        said.append(_NOT_CLEAN)
    said += [f"Next:   {step}" for step in _next_steps(results)]
    if sharded:
        said.append("This shard alone: the same command without --shard gathers all of them.")
    elif out is not None:
        said += [f"Report: {out / FILES[Format.html]}", f"Data:   {out / FILES[Format.json]}"]
    return "\n".join(said)


def documents(results: Sequence[ScanResult], format_: Format) -> str:
    """All results as one document.

    Raises:
        ValueError: A table is no document.
    """
    match format_:
        case Format.json:
            return _json([result.model_dump(mode="json") for result in results])
        case Format.sarif:
            from ..report.scan_sarif import to_sarif

            return _json(to_sarif(results))
        case Format.html:
            from ..report.scan_html import render_scan

            return render_scan(results)
    raise ValueError(f"{format_} is no document")


def write_documents(results: Sequence[ScanResult], out: Path) -> None:
    """`results.json`, `results.sarif` and `report.html`, each there only when it is whole.

    Raises:
        OutputError: One cannot be written.
    """
    from ..models.whole_folder import whole_file

    for format_, name in FILES.items():
        text = documents(results, format_)
        with whole_file(out / name) as partial:
            partial.write_text(text, encoding="utf-8")


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _why(result: ScanResult) -> str:
    from ..report.text import quoted, rate, visible

    if not result.findings:
        return visible(result.reason)
    first, more = result.findings[0], len(result.findings) - 1
    said = f"{quoted(first.trigger)} releases {quoted(first.behaviour)} in {rate(first.rate, n=True)}"
    return said + (f", and {more} more" if more else "")


def _next_steps(results: Sequence[ScanResult]) -> list[str]:
    from ..report.text import visible

    return [visible(step) for step in results[0].next_steps] if len(results) == 1 else []
