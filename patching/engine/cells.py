"""Which cells a sweep has, where each begins to change the run, and in what portions they are run.

A *cell* is one patched run: one prompt, one layer, one head (or all), one span of positions (or all that correspond).
Columns are those of the left-padded batch: a prompt's last token stands in the last column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..pairs import Pair


@dataclass(frozen=True)
class Cells:
    """Cells of one block of pairs, `[cell]` each.

    Attributes:
        layer, row, head, span: Coordinates. `row` counts the block's pairs; `head` and `span` are 0 where not told apart.
        start: First column that the patch changes.
        itself: Whether the run is patched with its own activations, to measure the noise.
    """

    layer: Int[Tensor, "cell"]
    row: Int[Tensor, "cell"]
    head: Int[Tensor, "cell"]
    span: Int[Tensor, "cell"]
    start: Int[Tensor, "cell"]
    itself: Bool[Tensor, "cell"]

    def __len__(self) -> int:
        return len(self.layer)

    def __getitem__(self, which: Tensor | slice) -> Cells:
        return Cells(*(getattr(self, f.name)[which] for f in fields(self)))

    def with_themselves(self, number: int) -> Cells:
        """Up to `number` of the cells, patched with their own run: the one that changes most, and others spread evenly.

        Spread over layers first, then over where the patch begins, over heads and over rows.
        """
        order = torch.arange(len(self), device=self.layer.device)
        for key in (self.row, self.head, self.start, self.layer):
            order = order[torch.argsort(key[order], stable=True)]
        chosen = self[order[torch.linspace(0, len(self) - 1, min(number, len(self))).long().to(order.device)]]
        return replace(chosen, itself=torch.ones_like(chosen.itself))

    def portions(self, cost: Int[Tensor, "cell"], limit: int) -> Iterator[Int[Tensor, "portion"]]:
        """Indices in portions of at most `limit` in cost (or one cell), cells that start alike together."""
        order = torch.argsort(self.start, stable=True)
        number = _filled(cost[order].tolist(), limit)
        yield from torch.split(order, number)


@dataclass(frozen=True)
class Moves:
    """Which column of the base run takes its activation from which column of the source run.

    Attributes:
        row, span, base, source: One entry per position that may change, sorted by row and span, `[entry]`.
        defined: Whether a span has a counterpart, `[row, span]`.
    """

    row: Int[Tensor, "entry"]
    span: Int[Tensor, "entry"]
    base: Int[Tensor, "entry"]
    source: Int[Tensor, "entry"]
    defined: Bool[Tensor, "row span"]

    @classmethod
    def of(
        cls, pairs: Sequence[Pair], width: int, end: int, *, clean_base: bool, by_span: bool, device: torch.device
    ) -> Moves:
        """Of prompts padded to `width` columns, of which those from `end` on are not read by the metric."""
        entries: list[tuple[int, int, int, int]] = []
        defined = torch.zeros(len(pairs), len(pairs[0].clean_spans) if by_span else 1, dtype=torch.bool)
        for number, pair in enumerate(pairs):
            of_clean, of_corrupted = width - len(pair.clean), width - len(pair.corrupted)
            for span, both in enumerate(zip(pair.clean_spans, pair.corrupted_spans, strict=True)):
                column = span if by_span else 0
                defined[number, column] |= all(map(bool, both))
                for c, k in pair.moves(span):
                    columns = c + of_clean, k + of_corrupted
                    base, source = columns if clean_base else columns[::-1]
                    if base < end:
                        entries.append((number, column, base, source))
        row, span, base, source = torch.tensor(sorted(entries), device=device).reshape(-1, 4).unbind(1)
        return cls(row, span, base, source, defined.to(device))

    def cells(self, layer: int, differs: Bool[Tensor, "entry head"]) -> Cells:
        """The cells of a layer whose patch changes something, given where the two runs differ."""
        entry, head = differs.nonzero(as_tuple=True)
        rows, spans = self.defined.shape
        shape = (rows, differs.shape[1], spans)
        start = torch.full(shape, torch.iinfo(torch.long).max, device=differs.device).flatten()
        key = (self.row[entry] * shape[1] + head) * spans + self.span[entry]
        start.scatter_reduce_(0, key, self.base[entry], "amin")
        active = (start < torch.iinfo(torch.long).max).nonzero()[:, 0]
        row, head, span = active // (shape[1] * spans), active // spans % shape[1], active % spans
        return Cells(
            torch.full_like(row, layer), row, head, span, start[active], torch.zeros_like(row, dtype=torch.bool)
        )

    def entries_of(self, cells: Cells) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
        """Every (cell, entry) of the cells, in order of cells."""
        spans = self.defined.shape[1]
        count = torch.bincount(self.row * spans + self.span, minlength=self.defined.numel())
        key = cells.row * spans + cells.span
        return ragged((count.cumsum(0) - count)[key], count[key])


def joined(parts: Sequence[Cells]) -> Cells:
    """All cells, one part after the other."""
    return Cells(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Cells)))


def ragged(first: Int[Tensor, "owner"], count: Int[Tensor, "owner"]) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
    """The integers `first[i] … first[i] + count[i] - 1` of every owner `i`, one after the other: (owner, integer)."""
    owner = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    within = torch.arange(len(owner), device=count.device) - (count.cumsum(0) - count)[owner]
    return owner, first[owner] + within


def _filled(costs: list[int], limit: int) -> list[int]:
    """Lengths of consecutive portions."""
    lengths, filled = [], 0
    for cost in costs:
        if not lengths or filled + cost > limit:
            lengths.append(0)
            filled = 0
        lengths[-1] += 1
        filled += cost
    return lengths
