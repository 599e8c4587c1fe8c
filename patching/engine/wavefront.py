"""The fast engine: all cells of all layers travel up through the model together, each computing only what it changed.

1. *Enter.* A cell patched in `resid_pre` joins at its layer. A cell patched inside a layer is first brought to what it
   leaves in the residual stream after that layer, which takes one call of the part of the layer after attention.
2. *Travel.* Of every cell only the columns from the patch on are carried, packed without padding as one long row of
   tokens. Keys and values before the patch are those of the base run. A layer is called once for all cells below it.
3. *Arrive.* In the last layer keys and values are computed for all carried tokens, everything else only where the metric
   reads; and only there is the model unembedded.

What a token computes does not depend on its neighbours but through attention, so nothing here is approximate: every
number is one that a whole run would have computed, up to the order in which floating point sums are taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .attention import CannotSplit, attention, pattern
from .cells import Cells, Places, ragged
from .sites import Site, output_of
from .split import Enough, Recording, SplitModel

# Logits held at once; 64 MiB in single precision.
_LOGITS = 2**24


@dataclass(frozen=True)
class Tokens:
    """Packed tokens: which cell each belongs to, which row and column of the base run it stands for, `[token]`."""

    cell: Int[Tensor, "token"]
    row: Int[Tensor, "token"]
    column: Int[Tensor, "token"]

    def __len__(self) -> int:
        return len(self.cell)

    def __getitem__(self, which: Tensor) -> Tokens:
        return Tokens(self.cell[which], self.row[which], self.column[which])

    def __add__(self, other: Tokens) -> Tokens:
        both = ((self.cell, other.cell), (self.row, other.row), (self.column, other.column))
        return Tokens(*(torch.cat(pair) for pair in both))


class Wavefront:
    """Patched runs of one block of pairs.

    Args:
        recording: One unpatched run of the base prompts and, after them, of the source prompts in the same order.
        read: Columns at which the metric reads the logits, ascending.
        heads: How many heads cells are told apart by.
    """

    def __init__(
        self,
        split: SplitModel,
        recording: Recording,
        places: Places,
        *,
        site: Site,
        heads: int,
        read: Int[Tensor, "read"],
    ):
        self.split, self.run, self.places, self.heads = split, recording, places, heads
        self.site: Site = site
        self.n_layers = split.where.n_layers
        self.rows = len(recording.logits) // 2
        self.end = int(read[-1]) + 1
        width = recording.kept["resid_pre"][0].shape[1]
        self.reads = torch.zeros(width, dtype=torch.bool, device=read.device)
        self.reads[read] = True
        self.read = read
        self._given: dict[int, tuple[Tensor, Tensor]] = {}

    # What there is to run

    def cells(self) -> Cells:
        """Every cell whose patch could move the metric, layer by layer."""
        per_layer = [self._cells(layer) for layer in range(self.n_layers)]
        return Cells(
            *(torch.cat(column) for column in zip(*(vars(cells).values() for cells in per_layer), strict=True))
        )

    def cost(self, cells: Cells) -> Int[Tensor, "cell"]:
        """Tokens that each cell carries; the copy of a row's keys and values counts for a quarter of its columns."""
        return self.end - cells.start + self.end // 4

    def _cells(self, layer: int) -> Cells:
        here, there = self.given(layer)
        differs = (here != there).unflatten(-1, (self.heads, -1)).any(-1)  # [entry, head]
        if layer == self.n_layers - 1 and self.site not in ("resid_pre", "k", "v"):
            differs &= self.reads[self.places.base][:, None]
        return self.places.cells(layer, differs)

    def given(self, layer: int) -> tuple[Float[Tensor, "entry d"], Float[Tensor, "entry d"]]:
        """By entry, what the site puts out in the base run and in the source run."""
        if layer not in self._given:
            places, kept = self.places, self.run.kept
            source = places.row + self.rows
            if self.site == "pattern":
                here, there = self._weighted(layer, slice(0, self.rows)), self._weighted(layer, slice(self.rows, None))
                pair = here[places.row, places.base], there[places.row, places.source]
            else:
                value = kept[self.site][layer]
                there = self._moved(layer) if self.site in ("q", "k") else value[source, places.source]
                pair = value[places.row, places.base], there
            self._given[layer] = pair
        return self._given[layer]

    def _moved(self, layer: int) -> Float[Tensor, "entry d"]:
        """Queries or keys of the source run as they would be at the base's positions (rotary embeddings turn them)."""
        places, seen = self.places, {}
        hidden = self.run.kept["resid_pre"][layer][places.row + self.rows, places.source]

        def look(q: Tensor, k: Tensor, _: Tensor) -> Tensor:
            seen.update(q=q, k=k)
            raise Enough

        with suppress(Enough):
            self.split.run_layer(layer, hidden, self._call(layer, places.row, places.base), look)
        return seen[self.site]

    def _weighted(self, layer: int, weights_of: slice) -> Float[Tensor, "row column d"]:
        """`z` if the attention pattern were that of the given rows and the values were the base run's."""
        where, kept = self.split.where, self.run.kept
        q, k = (kept[name][layer][weights_of] for name in ("q", "k"))
        q, k = q.unflatten(-1, (where.n_heads, -1)), k.unflatten(-1, (where.n_kv_heads, -1))
        weights = pattern(
            q.transpose(1, 2), k.transpose(1, 2), self.run.masks[layer][weights_of], self.run.scores[layer]
        )
        v = kept["v"][layer][: self.rows].unflatten(-1, (where.n_kv_heads, -1)).transpose(1, 2)
        return (weights @ v.repeat_interleave(where.n_heads // where.n_kv_heads, dim=1)).transpose(1, 2).flatten(2)

    # Running it

    def logits(self, cells: Cells) -> Iterator[tuple[slice | Tensor, Float[Tensor, "cell read vocab"]]]:
        """Logits of the patched runs, in portions of consecutive cells."""
        tokens, hidden = self._travel(cells)
        order = torch.argsort(tokens.cell, stable=True)
        tokens, hidden = tokens[order], hidden[order]
        unpatched = self.run.logits
        step = max(1, _LOGITS // unpatched[0].numel())
        for first in range(0, len(cells), step):
            part = slice(first, min(first + step, len(cells)))
            inside = (tokens.cell >= part.start) & (tokens.cell < part.stop)
            out = self.split.unembed(hidden[inside])
            if len(self.read) > 1:  # a metric's column before the patch has the base run's logits
                whole = unpatched[cells.row[part]]
                whole[tokens.cell[inside] - first, torch.searchsorted(self.read, tokens.column[inside])] = out
            else:
                whole = out[:, None]
            yield part, whole

    def patched(self, layer: int, cells: Cells) -> tuple[Site, Float[Tensor, "cell column d"]]:
        """The same patches, all at `layer`, as what one site puts out in all columns; inside attention, as `z`."""
        everything = torch.arange(len(cells), device=cells.row.device)
        patched, given, _ = self._entries(layer, cells, everything)
        site = output_of(self.site)
        out = self.run.kept[site][layer][cells.row].clone()
        if self.site in ("k", "v"):
            tokens, _ = self._carried(cells, layer, everything)
            out[tokens.cell, tokens.column] = self._z_of_patched_memory(layer, cells, tokens, patched, given)
        elif site == "z":
            out[patched.cell, patched.column] = self._patched_z(layer, cells, patched, given)
        else:
            out[patched.cell, patched.column] = given
        return site, out

    def _travel(self, cells: Cells) -> tuple[Tokens, Float[Tensor, "token d_model"]]:
        """What all cells leave in the residual stream where the metric reads."""
        layers = cells.layer.tolist()
        tokens, hidden = self._carried(cells[:0], 0, cells.row[:0])
        for layer in range(min(layers), self.n_layers):
            joining = (cells.layer == layer).nonzero()[:, 0] if layer in layers else None
            if joining is not None and self.site == "resid_pre":
                entering, entered = self._carried(cells[joining], layer, joining)
                _, given, where = self._entries(layer, cells, joining)
                entered[where] = given
                tokens, hidden = tokens + entering, torch.cat([hidden, entered])
            if len(tokens):
                tokens, hidden = self._layer(layer, tokens, hidden, cells)
            if joining is not None and self.site != "resid_pre":
                leaving, left = self._left(layer, cells, joining)
                tokens, hidden = tokens + leaving, torch.cat([hidden, left])
        return tokens, hidden

    def _layer(
        self, layer: int, tokens: Tokens, hidden: Float[Tensor, "token d_model"], cells: Cells
    ) -> tuple[Tokens, Float[Tensor, "token d_model"]]:
        """One layer for all cells that have joined; in the last layer, only what the metric reads of them."""
        present, local = torch.unique(tokens.cell, return_inverse=True)
        rows, call, memory = cells.row[present], self._call(layer, tokens.row, tokens.column), {}

        def remember(k: Tensor, v: Tensor) -> None:
            for name, value in (("k", k), ("v", v)):
                memory[name] = self._base(name, layer, rows)
                memory[name][local, tokens.column] = value

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            remember(k, v)
            return self._z(layer, q, local, tokens.column, rows, memory)

        if layer < self.n_layers - 1:
            return tokens, self.split.run_layer(layer, hidden, call, attend)

        def only_remember(_: Tensor, k: Tensor, v: Tensor) -> Tensor:
            remember(k, v)
            raise Enough

        with suppress(Enough):
            self.split.run_layer(layer, hidden, call, only_remember)
        read = self.reads[tokens.column]
        tokens, local, hidden = tokens[read], local[read], hidden[read]
        call = self._call(layer, tokens.row, tokens.column)
        return tokens, self.split.run_layer(
            layer, hidden, call, lambda q, _k, _v: self._z(layer, q, local, tokens.column, rows, memory)
        )

    def _left(
        self, layer: int, cells: Cells, joining: Int[Tensor, "joining"]
    ) -> tuple[Tokens, Float[Tensor, "token d_model"]]:
        """What cells patched inside a layer leave in the residual stream after it."""
        tokens, hidden = self._carried(cells[joining], layer + 1, joining)
        patched, given, where = self._entries(layer, cells, joining)
        if layer == self.n_layers - 1:
            tokens, hidden, where = self._read_only(tokens, hidden, where)
            if self.site not in ("k", "v"):
                kept = where >= 0
                patched, given, where = patched[kept], given[kept], where[kept]
        if self.site in ("k", "v"):  # every later column sees the patch
            z = self._z_of_patched_memory(layer, cells, tokens, patched, given)
            return tokens, self._after_attention(layer, tokens, z=z)
        kept = self.run.kept
        if self.site == "resid_mid":
            # The stream is what it is told to be, and attention adds nothing to it.
            after = self.split.run_after_attention(
                layer, given, self._call(layer, patched.row, patched.column), attn_out=torch.zeros_like(given)
            )
        elif self.site == "attn_out":
            after = self._after_attention(layer, patched, attn_out=given)
        elif self.site == "mlp_out":
            attn_out = kept["attn_out"][layer][patched.row, patched.column]
            after = self._after_attention(layer, patched, attn_out=attn_out, mlp_out=given)
        else:
            after = self._after_attention(layer, patched, z=self._patched_z(layer, cells, patched, given))
        hidden[where] = after
        return tokens, hidden

    def _after_attention(self, layer: int, tokens: Tokens, **given: Tensor) -> Float[Tensor, "token d_model"]:
        hidden = self.run.kept["resid_pre"][layer][tokens.row, tokens.column]
        return self.split.run_after_attention(layer, hidden, self._call(layer, tokens.row, tokens.column), **given)

    def _patched_z(self, layer: int, cells: Cells, tokens: Tokens, given: Tensor) -> Float[Tensor, "token d"]:
        """`z` of the patched tokens, where the site changes it there alone."""
        part = "q" if self.site == "q" else "z"
        own = self._with_head(self.run.kept[part][layer][tokens.row, tokens.column], given, cells.head[tokens.cell])
        if self.site != "q":
            return own
        present, local = torch.unique(tokens.cell, return_inverse=True)
        rows = cells.row[present]
        memory = {name: self._base(name, layer, rows) for name in ("k", "v")}
        return self._z(layer, own, local, tokens.column, rows, memory)

    def _z_of_patched_memory(
        self, layer: int, cells: Cells, tokens: Tokens, patched: Tokens, given: Tensor
    ) -> Float[Tensor, "token d"]:
        """`z` of all carried tokens when keys or values of some columns are patched."""
        present, local = torch.unique(tokens.cell, return_inverse=True)
        rows = cells.row[present]
        memory = {name: self._base(name, layer, rows) for name in ("k", "v")}
        changed, owner = memory[self.site], torch.searchsorted(present, patched.cell)
        changed[owner, patched.column] = self._with_head(
            changed[owner, patched.column], given, cells.head[patched.cell]
        )
        q = self.run.kept["q"][layer][tokens.row, tokens.column]
        return self._z(layer, q, local, tokens.column, rows, memory)

    def _z(
        self,
        layer: int,
        q: Float[Tensor, "token d"],
        local: Int[Tensor, "token"],
        column: Int[Tensor, "token"],
        rows: Int[Tensor, "cell"],
        memory: dict[str, Float[Tensor, "cell column d"]],
    ) -> Float[Tensor, "token d"]:
        """Attention of packed queries over their cells' keys and values."""
        where = self.split.where
        first = int(column.min())
        queries = q.new_zeros(len(rows), self.end - first, q.shape[-1])
        queries[local, column - first] = q
        by_head = [
            x.unflatten(-1, (n, -1)).transpose(1, 2)
            for x, n in ((queries, where.n_heads), (memory["k"], where.n_kv_heads), (memory["v"], where.n_kv_heads))
        ]
        mask = self.run.masks[layer][rows, :, first : self.end, : self.end]
        z = attention(by_head[0], by_head[1], by_head[2], mask, self.run.scores[layer])
        return z.transpose(1, 2)[local, column - first].flatten(1)

    def _base(self, name: str, layer: int, rows: Int[Tensor, "cell"]) -> Float[Tensor, "cell column d"]:
        """A copy of the base run's keys or values for every cell."""
        return self.run.kept[name][layer][:, : self.end][rows]

    def _carried(
        self, cells: Cells, layer: int, index: Int[Tensor, "cell"]
    ) -> tuple[Tokens, Float[Tensor, "token d_model"]]:
        """The cells' tokens from their patch on, with the base run's residual stream before `layer`."""
        owner, column = ragged(cells.start, self.end - cells.start)
        tokens = Tokens(index[owner], cells.row[owner], column)
        return tokens, self.run.kept["resid_pre"][layer][tokens.row, tokens.column]

    def _entries(
        self, layer: int, cells: Cells, joining: Int[Tensor, "joining"]
    ) -> tuple[Tokens, Float[Tensor, "patched d"], Int[Tensor, "patched"]]:
        """The tokens that are patched, what with, and where they are among the carried tokens of the joining cells."""
        joined = cells[joining]
        owner, entry = self.places.entries_of(joined)
        inside = self.places.base[entry] >= joined.start[owner]
        owner, entry = owner[inside], entry[inside]
        here, there = self.given(layer)
        given = torch.where(joined.itself[owner][:, None], here[entry], there[entry])
        length = self.end - joined.start
        column = self.places.base[entry]
        where = (length.cumsum(0) - length)[owner] + column - joined.start[owner]
        return Tokens(joining[owner], joined.row[owner], column), given, where

    def _read_only(
        self, tokens: Tokens, hidden: Tensor, where: Int[Tensor, "patched"]
    ) -> tuple[Tokens, Tensor, Int[Tensor, "patched"]]:
        """Leave out what the metric does not read; `where` becomes -1 for patched tokens that are left out."""
        read = self.reads[tokens.column]
        moved = torch.where(read, read.long().cumsum(0) - 1, -1)
        return tokens[read], hidden[read], moved[where]

    def _with_head(
        self, own: Float[Tensor, "n d"], given: Float[Tensor, "n d"], head: Int[Tensor, "n"]
    ) -> Float[Tensor, "n d"]:
        """`own` with one head of each row replaced."""
        if self.heads == 1:
            return given
        out, each = own.clone().unflatten(-1, (self.heads, -1)), torch.arange(len(own), device=own.device)
        out[each, head] = given.unflatten(-1, (self.heads, -1))[each, head]
        return out.flatten(1)

    def _call(
        self, layer: int, row: Int[Tensor, "token"], column: Int[Tensor, "token"]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a layer is called with for packed tokens, taken from the unpatched run token by token."""
        args, kwargs = self.run.calls[layer]
        take = partial(_take, row=row, column=column, width=len(self.reads))
        return tuple(map(take, args)), {name: take(value) for name, value in kwargs.items()}


def _take(value: Any, *, row: Tensor, column: Tensor, width: int) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_take(part, row=row, column=column, width=width) for part in value)
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 4 and value.shape[-1] == width:
        return None  # the mask: packed tokens are masked by `_z`
    if value.ndim == 1 and len(value) == width:
        return value[column]
    if value.ndim >= 2 and value.shape[1] == width:
        return value[row if len(value) > 1 else torch.zeros_like(row), column][None]
    raise CannotSplit(f"its layers are given a tensor of shape {tuple(value.shape)}, of unknown meaning")
