"""What was measured under load, as tables and as a figure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...models.organisms.tables import Table, markdown
from .load_work import JOBS, Point

Points = Mapping[int, Point]
Measured = Mapping[str, Points]
MEMORIES = ("peak memory, MiB", "with pages of files, MiB")


def report(measured: Measured) -> str:
    """A table for each, and one sentence on what its points have in common."""
    parts = (f"{markdown(TABLES[work](points))}\n{SAID[work](points)}\n" for work, points in measured.items())
    return "\n".join(parts)


def drawing(measured: Measured) -> Figure:
    """A column for each: time above, memory below, against size."""
    figure = Figure(figsize=(4.6 * len(measured), 6), layout="constrained")
    axes = figure.subplots(2, len(measured), squeeze=False, sharex="col")
    for (above, below), (work, points) in zip(axes.T, measured.items(), strict=True):
        LINES[work](above, below, points)
        above.set(title=work, ylabel="processor time, s")
        below.margins(y=0.25)  # room for the legend
        below.set(xlabel=SIZE[work], ylabel="peak memory, GiB", ylim=0)
        for one in (above, below):
            one.grid(alpha=0.3)
            one.legend(fontsize="small")
    return figure


def bytes_a_prompt(points: Points) -> float:
    """What one prompt more takes, from the smallest size to the largest."""
    first, last = min(points), max(points)
    return 2**20 * (points[last]["own_mib"] - points[first]["own_mib"]) / (last - first)


def above_weights(points: Points, what: str) -> tuple[float, float]:
    """The bound `share × weights + rest` that all points keep, with the least share that they allow; the rest in MiB."""
    weights = np.array([point["weights_mib"] for point in points.values()])
    peak = np.array([point[what] for point in points.values()])
    share = float((peak[-1] - peak[0]) / (weights[-1] - weights[0])) if len(points) > 1 else 1.0
    return share, float((peak - share * weights).max())


def _of_prompts(points: Points) -> Table:
    rows = []
    for n, point in points.items():
        read, collect = (point["steps"][step] for step in ("read", "collect"))
        rows.append(
            (
                *(f"{n:,}", f"{read['cpu_seconds']:.1f}", f"{collect['cpu_seconds']:.1f}", f"{collect['seconds']:.1f}"),
                *(f"{n / collect['cpu_seconds']:,.0f}", f"{point['own_mib']:,.0f}", f"{point['peak_mib']:,.0f}"),
                *(f"{point['stored_mib']:,.1f}", f"{point['shards']:,}"),
            )
        )
    header = ("prompts", "read, s", "collect, s", "by the clock, s", "prompts/s", *MEMORIES, "on disk, MiB", "shards")
    return header, rows


def _of_models(points: Points) -> Table:
    rows = []
    for n, point in points.items():
        scan = point["steps"]["scan"]
        rows.append(
            (
                *(f"{n:,}", f"{point['examined']:,}", f"{n - point['examined']:,}", f"{scan['cpu_seconds']:,.0f}"),
                *(f"{scan['seconds']:,.0f}", f"{scan['cpu_seconds'] / n:.1f}"),
                *(f"{point[name]:,.0f}" for name in ("own_mib", "peak_mib", "worker_mib")),
            )
        )
    header = (
        *("models", "examined", "could not be", "scan, s", "by the clock, s", "s/model", *MEMORIES),
        "a worker's, with pages of files",
    )
    return header, rows


def _of_layers(points: Points) -> Table:
    rows = []
    for n, point in points.items():
        seconds = (f"{step['cpu_seconds']:,.1f}" for step in point["steps"].values())
        clock = sum(step["seconds"] for step in point["steps"].values())
        rows.append(
            (
                *(f"{n:,}", f"{point['parameters'] / 1e9:.2f} B", *seconds, f"{point['cells']:,}", f"{clock:,.0f}"),
                *(f"{point[name]:,.0f}" for name in ("weights_mib", "own_mib", "peak_mib")),
            )
        )
    header = (
        *("layers", "parameters", "load, s", "parity gate, s", "collect, s", "sweep, s", "cells", "by the clock, s"),
        *("weights, MiB", *MEMORIES),
    )
    return header, rows


def _said_of_prompts(points: Points) -> str:
    first = points[min(points)]
    return (
        f"{bytes_a_prompt(points):.0f} bytes for one prompt more, which waits in its file, above {first['own_mib']:.0f} MiB for "
        "the libraries, the model and one shard."
    )


def _said_of_models(points: Points) -> str:
    first, last = points[min(points)], points[max(points)]
    return (
        f"From the fewest models to the most, the peak goes from {first['own_mib']:.0f} to {last['own_mib']:.0f} MiB, and that of "
        f"the larger of {JOBS} workers from {first['worker_mib']:.0f} to {last['worker_mib']:.0f}."
    )


def _said_of_layers(points: Points) -> str:
    (own, rest), (mapped, besides) = (above_weights(points, what) for what in ("own_mib", "peak_mib"))
    return (
        f"At most {own:.2f} × weights + {rest:.0f} MiB; with the pages of the file that is read, which the system takes back where "
        f"memory is short, {mapped:.2f} × weights + {besides:.0f} MiB."
    )


def _draw_prompts(above: Axes, below: Axes, points: Points) -> None:
    for step, style in (("collect", "o-"), ("read", "s--")):
        above.loglog(list(points), _cpu_seconds(points, step), style, label=step)
    _draw_memory(below, points)


def _draw_models(above: Axes, below: Axes, points: Points) -> None:
    above.plot(list(points), _cpu_seconds(points, "scan"), "o-", label="scan, all processes")
    above.set(xlim=0, ylim=0)
    _draw_memory(below, points)
    below.plot(list(points), _gib(points, "worker_mib"), "^-", label="larger worker, with pages of files")


def _draw_layers(above: Axes, below: Axes, points: Points) -> None:
    for step, style in (("load", "o-"), ("parity gate", "s--"), ("collect", "^:"), ("sweep", "d-.")):
        above.plot(list(points), _cpu_seconds(points, step), style, label=step)
    above.set(xlim=0, yscale="log")
    _draw_memory(below, points)
    below.plot(list(points), _gib(points, "weights_mib"), "k:", label="weights")


def _draw_memory(axes: Axes, points: Points) -> None:
    axes.plot(list(points), _gib(points, "own_mib"), "o-", label="its own")
    axes.plot(list(points), _gib(points, "peak_mib"), "s--", label="with pages of files")


def _cpu_seconds(points: Points, step: str) -> list[float]:
    return [point["steps"][step]["cpu_seconds"] for point in points.values()]


def _gib(points: Points, what: str) -> list[float]:
    return [point[what] / 1024 for point in points.values()]


TABLES = {"prompts": _of_prompts, "models": _of_models, "layers": _of_layers}
SAID = {"prompts": _said_of_prompts, "models": _said_of_models, "layers": _said_of_layers}
LINES = {"prompts": _draw_prompts, "models": _draw_models, "layers": _draw_layers}
SIZE = {"prompts": "prompts", "models": "models", "layers": "layers of width 2048"}
