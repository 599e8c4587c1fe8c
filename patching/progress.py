"""Progress of long work: the caller's own report, a bar with the time left, or silence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from ..untrusted import visible

Progress = Callable[[float], None]


@contextmanager
def shown(progress: Progress | bool, what: str) -> Iterator[Progress]:
    """What to report the fraction done to.

    Args:
        progress: A function that is called with it; True for a bar on a terminal or in a notebook, which appears where the
            work takes more than two seconds and goes when it is done; False for silence.
        what: What the bar is called.
    """
    if callable(progress):
        yield progress
        return
    columns = "{desc}: {percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left"
    # `disable=None` is silent where stderr is no terminal.
    with tqdm(
        total=1.0,
        desc=visible(what, limit=60),
        delay=2,
        leave=False,
        miniters=0,
        bar_format=columns,
        disable=None if progress else True,
    ) as bar:

        def report(done: float) -> None:
            bar.update(done - bar.n)

        yield report
