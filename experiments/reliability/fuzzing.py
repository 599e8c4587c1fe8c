"""Does the safe loader hold against files that somebody broke or made to break it? Mutations of a sound checkpoint.

    python -m sleeperlens.experiments.reliability.fuzzing --inputs 100000 [--seed 0] [--loaded 0.02]

Every input changes one file of a small random Llama: the header of its weights, their index, the configuration, the tokenizer or its
settings, the configuration or the header of an adapter. Half of the changes are made to the bytes (flipped, cut, doubled, put in), half to the
JSON (a value of another kind or of an extreme size, a field dropped, nested or given twice). All inputs go through every check that
needs no model; a share of those that pass goes through the whole loader. An input may be examined or refused in one line. Anything
else is a finding: another exception, a message of two lines, more than ten seconds.

Inputs are numbered, and number and seed give the input, so that a finding can be made again: `--only NUMBER --debug`.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...models.checkpoint import check_adapter, check_files
from ...models.checkpoint.header import METADATA
from ...models.loading import load
from ...models.organisms.tables import markdown
from .small_checkpoint import ADAPTER, ADAPTER_WEIGHTS, INDEX, WEIGHTS, joined, make_checkpoint, parts

SECONDS = 10  # for one input
DOCUMENTS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", INDEX, ADAPTER)
TARGETS = (*DOCUMENTS, WEIGHTS, ADAPTER_WEIGHTS)
EXTREMES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, 1e308, "", "x" * 5000, "\u202e", "\x00"),
    *("../../etc/passwd", "/dev/zero", "__class__", [], {}, [[]], {"auto_map": {"AutoModel": "x.X"}}, [0] * 1000),
)


@dataclass
class Tally:
    """What became of the inputs, by the file that was changed; and the inputs that are findings, with what happened."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def table(self) -> str:
        kinds = ("refused", "examined", "finding")
        rows = [(name, *(str(self.outcomes[name, kind]) for kind in kinds)) for name in TARGETS]
        total = ("all", *(str(sum(self.outcomes[name, kind] for name in TARGETS)) for kind in kinds))
        return markdown((("file", *kinds), [*rows, total]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loaded", type=float, default=0.02, help="share of what passes the checks that is loaded")
    parser.add_argument("--only", type=int, default=None, help="the input of this number alone")
    parser.add_argument("--debug", action="store_true", help="raise what happens")
    arguments = parser.parse_args()
    begun = time.monotonic()
    numbers = range(arguments.inputs) if arguments.only is None else (arguments.only,)
    with tempfile.TemporaryDirectory() as scratch:
        tally = fuzz(Path(scratch), numbers, seed=arguments.seed, loaded=arguments.loaded, debug=arguments.debug)
    print(tally.table())
    print(
        f"{len(numbers)} inputs in {time.monotonic() - begun:.0f} s, the slowest {tally.slowest:.2f} s, seed {arguments.seed}"
    )
    for one in tally.findings:
        print(one)
    raise SystemExit(bool(tally.findings))


def fuzz(scratch: Path, numbers, *, seed: int = 0, loaded: float = 0.02, debug: bool = False) -> Tally:
    """Try the inputs of these numbers in a folder that may be written to."""
    folder = scratch / "checkpoint"
    make_checkpoint(folder)
    sound = {name: (folder / name).read_bytes() for name in TARGETS if (folder / name).exists()}
    tensors = [name for name in json.loads(parts(sound[WEIGHTS])[0]) if name != METADATA]
    sound[INDEX] = json.dumps({"weight_map": dict.fromkeys(tensors, WEIGHTS)}).encode()
    tally = Tally()
    for number in numbers:
        rng = random.Random(f"{seed} {number}")
        name = rng.choice(TARGETS)
        changed = mutated(name, sound[name], rng)
        (folder / name).write_bytes(changed)
        begun = time.monotonic()
        outcome, said = _tried(folder, name, load_too=rng.random() < loaded, debug=debug)
        tally.slowest = max(tally.slowest, time.monotonic() - begun)
        tally.outcomes[name, outcome] += 1
        if outcome == "finding":
            tally.findings.append(f"input {number}, {name}: {said}")
        if name == INDEX:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(sound[name])
        if number % 1000 == 999:
            print(f"\r{number + 1} inputs, {len(tally.findings)} findings ", end="", file=sys.stderr, flush=True)
    return tally


def mutated(name: str, sound: bytes, rng: random.Random) -> bytes:
    """The file with one to three changes."""
    if name.endswith(".safetensors"):
        head, body = parts(sound)
        text = _changed(head, rng)
        length = len(text) if rng.random() < 0.9 else rng.choice((0, 1, len(text) - 1, len(text) + 9, 2**40, 2**64 - 1))
        return joined(text, body if rng.random() < 0.9 else body[: rng.randrange(len(body))], length=length)
    return _changed(sound, rng)


def _changed(text: bytes, rng: random.Random) -> bytes:
    changes: tuple[Callable[[bytes, random.Random], bytes], ...] = (_bytes_changed, _json_changed)
    for _ in range(rng.randint(1, 3)):
        text = rng.choice(changes)(text, rng)
    return text


def _bytes_changed(text: bytes, rng: random.Random) -> bytes:
    if not text:
        return rng.randbytes(8)
    at, kind = rng.randrange(len(text)), rng.randrange(5)
    part = text[at : at + rng.randint(1, 64)]
    if kind == 0:
        return text[:at] + bytes([text[at] ^ (1 << rng.randrange(8))]) + text[at + 1 :]
    if kind == 1:
        return text[:at]
    if kind == 2:
        return text[:at] + part * rng.choice((2, 100)) + text[at + len(part) :]
    if kind == 3:
        return text[:at] + rng.randbytes(rng.randint(1, 16)) + text[at:]
    return text[:at] + rng.choice((b"[" * 3000, b"{" * 3000, b"9" * 6000, b"NaN", b"\xff\xfe", b'"' * 3)) + text[at:]


def _json_changed(text: bytes, rng: random.Random) -> bytes:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _bytes_changed(text, rng)
    places = list(_places(value))
    if not places:
        return _bytes_changed(text, rng)
    inside, key = rng.choice(places)
    kind = rng.randrange(4)
    if kind == 0:
        del inside[key]
    elif kind == 1:
        inside[key] = [inside[key]] if rng.random() < 0.5 else {str(key): inside[key]}
    elif kind == 2 and isinstance(inside, dict):
        other = rng.choice(list(inside))
        inside[key], inside[other] = inside[other], inside[key]
    else:
        inside[key] = rng.choice(EXTREMES)
    return json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for key in value if isinstance(value, Mapping) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _tried(folder: Path, name: str, *, load_too: bool, debug: bool) -> tuple[str, str]:
    adapter = folder / "adapter" if name.startswith("adapter/") else None
    try:
        with _within(SECONDS):
            check_files(folder)
            if adapter is not None:
                check_adapter(adapter)
            if load_too:
                load(folder, adapter=adapter)
    except CheckpointError as error:
        return ("refused", "") if "\n" not in str(error) else ("finding", f"a message of several lines: {error}")
    except BaseException as error:
        if debug or isinstance(error, KeyboardInterrupt):
            raise
        return "finding", f"{type(error).__name__}: {str(error)[:200]}"
    return "examined", ""


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    def ring(_signal: int, _frame: Any) -> None:
        raise TimeoutError(f"more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    main()
