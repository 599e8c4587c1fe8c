"""What `scan` prints: a line per model and a summary, or one document for all. The report room renders both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from .terminal import say

if TYPE_CHECKING:
    from ..report import ScanResult


class Format(StrEnum):
    table = "table"
    json = "json"
    sarif = "sarif"
    html = "html"


def lines(models: Sequence[str]) -> Callable[[ScanResult], str]:
    """A function that gives each model's line, the first with the header above it: where no line comes there is none."""
    from ..report.scan_terminal import name_width, scan_header, scan_row

    width = name_width(models)
    above = iter([scan_header(width) + "\n"])
    return lambda result: next(above, "") + scan_row(result, width)


def show(
    results: Sequence[ScanResult], format_: Format, *, out: Path | None, sharded: bool, root: Path | None = None
) -> None:
    """Print what comes when all are done; `out` is where files are, `root` what SARIF's locations are relative to."""
    import typer

    from ..report.scan_write import SCAN_FILES, scan_document

    if format_ is not Format.table:
        typer.echo(scan_document(results, format_.value, root=root), nl=False)
        return
    from rich.console import Console

    from ..report import scan_summary

    Console(highlight=False).print(scan_summary(results), crop=False)
    if sharded:
        say("This shard alone: the same command without --shard gathers all of them.")
    elif out is not None:
        say(f"Report: {out / SCAN_FILES['html']}", f"Data:   {out / SCAN_FILES['json']}")
