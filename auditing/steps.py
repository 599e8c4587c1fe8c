"""Where an audit stands: the step, how far it is, and how long each took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Progress = Callable[[str, float], None]


@dataclass
class Steps:
    """Steps of a known number, told as they begin.

    Attributes:
        seconds: By name; steps of one name are added up.
    """

    report: Progress | None
    n: int
    seconds: dict[str, float] = field(default_factory=dict)
    finished: int = 0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._tell(name, min(self.finished / self.n, 0.99))
        started = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
        self.finished += 1

    def done(self) -> None:
        self._tell("done", 1.0)

    def _tell(self, name: str, done: float) -> None:
        if self.report:
            self.report(name, done)
