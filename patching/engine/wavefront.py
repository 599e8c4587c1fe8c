"""The fast engine: all cells of all layers travel up through the model together, each computing only what it changed.

1. *Join.* A patch inside a layer is first brought to what it leaves in the residual stream after that layer, in the
   patched columns alone. Where a cell joins, its other columns have the base run's queries, keys and values, but see
   changed ones: attention and what follows is run from the patch on.
2. *Travel.* Of every cell only the columns from the patch on are carried, packed without padding as one long row of
   tokens. Keys and values before the patch are those of the base run. A layer is called once for all cells below it.
3. *Arrive.* In the last layer keys and values are computed for all carried tokens, everything else only where the metric
   reads; and only there is the model unembedded.

What a token computes does not depend on its neighbours but through attention, so nothing here is approximate: every
number is one that a whole run would have computed, up to the order in which floating point sums are taken.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .attention import attention
from .cells import Cells, Moves, joined, ragged
from .patches import Patches
from .sites import Site
from .split import Call, Recording, SplitModel
from .tokens import Tokens, packed

# Logits held at once; 64 MiB in single precision.
_LOGITS = 2**24


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
        moves: Moves,
        *,
        site: Site,
        heads: int,
        read: Int[Tensor, "read"],
    ):
        self.split, self.run, self.heads = split, recording, heads
        self.site: Site = site
        self.n_layers = split.where.n_layers
        self.end = int(read[-1]) + 1
        width = recording.kept["resid_pre"][0].shape[1]
        self.reads = torch.zeros(width, dtype=torch.bool, device=read.device)
        self.reads[read] = True
        self.read = read
        self.patches = Patches(split, recording, moves, site=site, heads=heads, end=self.end)

    # What there is to run

    def cells(self) -> Cells:
        """Every cell whose patch could move the metric, layer by layer."""
        return joined([self._cells(layer) for layer in range(self.n_layers)])

    def cost(self, cells: Cells) -> Int[Tensor, "cell"]:
        """Tokens that each cell carries; the copy of a row's keys and values counts for a quarter of its columns."""
        return self.end - cells.start + self.end // 4

    def _cells(self, layer: int) -> Cells:
        here, there = self.patches.given(layer)
        differs = (here != there).unflatten(-1, (self.heads, -1)).any(-1)  # [entry, head]
        if layer == self.n_layers - 1 and self.site not in ("resid_pre", "k", "v"):
            differs &= self.reads[self.patches.moves.base][:, None]
        return self.patches.moves.cells(layer, differs)

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

    def _travel(self, cells: Cells) -> tuple[Tokens, Float[Tensor, "token d_model"]]:
        """What all cells leave in the residual stream where the metric reads."""
        joins = cells.layer if self.site in ("resid_pre", "k", "v") else cells.layer + 1
        tokens, hidden = self._carried(cells[:0], 0, cells.row[:0])
        for layer in range(int(joins.min()), self.n_layers):
            tokens, hidden = self._layer(layer, cells, tokens, hidden, (joins == layer).nonzero()[:, 0])
        late = (joins == self.n_layers).nonzero()[:, 0]
        if len(late):  # patched in the last layer: nothing is left to run
            _, left, where = self._entering(self.n_layers, cells, late)
            added, stream = self._carried(cells[late], self.n_layers, late)
            stream[where] = left
            read = self.reads[added.column]
            tokens, hidden = tokens + added[read], torch.cat([hidden, stream[read]])
        return tokens, hidden

    def _layer(
        self,
        layer: int,
        cells: Cells,
        tokens: Tokens,
        hidden: Float[Tensor, "token d_model"],
        joining: Int[Tensor, "joining"],
    ) -> tuple[Tokens, Float[Tensor, "more d_model"]]:
        """One layer for the cells that have joined and for those that join here."""
        if not len(tokens) + len(joining):
            return tokens, hidden
        carried, within = len(tokens), self.site in ("k", "v")
        running, asked, stream, where = tokens, tokens, hidden, joining
        patched, given, q = tokens, hidden, hidden[:0]
        if len(joining):
            enter = self.patches.of if within else self._entering
            patched, given, where = enter(layer, cells, joining)
            added, unpatched = self._carried(cells[joining], layer, joining)
            running, q = tokens + added, added.of(self.run.kept["q"][layer])
            if not within:  # only the patched columns of a cell that joins have other queries, keys and values
                unpatched[where] = given
                asked, stream = tokens + patched, torch.cat([hidden, given])
            hidden = torch.cat([hidden, unpatched])
        present, local = torch.unique(running.cell, return_inverse=True)
        rows = cells.row[present]
        memory = {name: self._base(name, layer, rows) for name in ("k", "v")}
        if len(asked):
            seen = self.split.look(layer, stream, self._call(layer, asked))
            owner = torch.searchsorted(present, asked.cell)
            for name, value in memory.items():
                value[owner, asked.column] = seen[name]
            q = torch.cat([seen["q"][:carried], q])
            if not within:
                q[carried + where] = seen["q"][carried:]
        if within and len(joining):
            self._patch_memory(memory, present, cells, patched, given)
        if layer == self.n_layers - 1:
            read = self.reads[running.column]
            read = read.nonzero()[:, 0]
            running, local, hidden, q = running[read], local[read], hidden[read], q[read]
        z = self._z(layer, q, local, running.column, rows, memory)
        call = self._call(layer, running)
        return running, self.split.run_after_attention(layer, hidden, call, z=z)

    def _entering(
        self, layer: int, cells: Cells, joining: Int[Tensor, "joining"]
    ) -> tuple[Tokens, Float[Tensor, "patched d_model"], Int[Tensor, "patched"]]:
        """The residual stream before `layer` in the patched columns, and where they are among the carried tokens."""
        if self.site == "resid_pre":
            return self.patches.of(layer, cells, joining)
        layer = layer - 1
        patched, given, where = self.patches.of(layer, cells, joining)
        if self.site == "resid_mid":
            # The stream is what it is told to be, and attention adds nothing to it.
            call = self._call(layer, patched)
            after = self.split.run_after_attention(layer, given, call, attn_out=torch.zeros_like(given))
        elif self.site == "attn_out":
            after = self._after_attention(layer, patched, attn_out=given)
        elif self.site == "mlp_out":
            attn_out = patched.of(self.run.kept["attn_out"][layer])
            after = self._after_attention(layer, patched, attn_out=attn_out, mlp_out=given)
        else:
            after = self._after_attention(layer, patched, z=self._patched_z(layer, cells, patched, given))
        return patched, after, where

    def _after_attention(self, layer: int, tokens: Tokens, **given: Tensor) -> Float[Tensor, "token d_model"]:
        hidden = tokens.of(self.run.kept["resid_pre"][layer])
        return self.split.run_after_attention(layer, hidden, self._call(layer, tokens), **given)

    def _patched_z(self, layer: int, cells: Cells, tokens: Tokens, given: Tensor) -> Float[Tensor, "token d"]:
        """`z` of the patched tokens, where the site changes it there alone."""
        part = "q" if self.site == "q" else "z"
        own = self.patches.with_head(tokens.of(self.run.kept[part][layer]), given, cells.head[tokens.cell])
        if self.site != "q":
            return own
        present, local = torch.unique(tokens.cell, return_inverse=True)
        rows = cells.row[present]
        memory = {name: self._base(name, layer, rows) for name in ("k", "v")}
        return self._z(layer, own, local, tokens.column, rows, memory)

    def _patch_memory(
        self, memory: dict[str, Tensor], present: Int[Tensor, "cell"], cells: Cells, patched: Tokens, given: Tensor
    ) -> None:
        """Put patched keys or values into `memory`, **in place**."""
        where = torch.searchsorted(present, patched.cell), patched.column
        memory[self.site][where] = self.patches.with_head(memory[self.site][where], given, cells.head[patched.cell])

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
        return self.run.kept[name][layer][:, : self.end].index_select(0, rows)

    def _carried(
        self, cells: Cells, layer: int, index: Int[Tensor, "cell"]
    ) -> tuple[Tokens, Float[Tensor, "token d_model"]]:
        """The cells' tokens from their patch on, with the base run's residual stream before `layer`."""
        owner, column = ragged(cells.start, self.end - cells.start)
        tokens = Tokens(index[owner], cells.row[owner], column)
        return tokens, tokens.of(self.run.kept["resid_pre"][layer])

    def _call(self, layer: int, tokens: Tokens) -> Call:
        return packed(self.run.calls[layer], tokens, len(self.reads))
