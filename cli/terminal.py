"""What every command shares: errors as one line, progress with the time left, threads."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import contextmanager
from typing import Annotated

import typer

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads; all cores where not given.", min=1)]


def share_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


@contextmanager
def mendable(debug: bool, kept: str = "nothing was written"):
    """Turn errors that a user can mend into one line and exit code 4."""
    from ..errors import SleeperLensError

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
def progress_bar():
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
