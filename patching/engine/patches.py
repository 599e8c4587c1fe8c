"""What a patch puts where: the source run's activations, brought to the base run's positions."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .attention import pattern
from .cells import Cells, Moves
from .sites import Site
from .split import Recording, SplitModel
from .tokens import Tokens, packed


class Patches:
    """Patches of one site in one block of pairs; arguments as of `Wavefront`."""

    def __init__(self, split: SplitModel, recording: Recording, moves: Moves, *, site: Site, heads: int, end: int):
        self.split, self.run, self.moves, self.heads, self.end = split, recording, moves, heads, end
        self.site: Site = site
        self.rows = len(recording.logits) // 2
        self._given: dict[int, tuple[Tensor, Tensor]] = {}

    def given(self, layer: int) -> tuple[Float[Tensor, "entry d"], Float[Tensor, "entry d"]]:
        """By entry, what the site puts out in the base run and in the source run."""
        if layer not in self._given:
            moves, kept = self.moves, self.run.kept
            source = moves.row + self.rows
            if self.site == "pattern":
                here, there = self._weighted(layer, slice(0, self.rows)), self._weighted(layer, slice(self.rows, None))
                pair = here[moves.row, moves.base], there[moves.row, moves.source]
            else:
                value = kept[self.site][layer]
                there = self._moved(layer) if self.site in ("q", "k") else value[source, moves.source]
                pair = value[moves.row, moves.base], there
            self._given[layer] = pair
        return self._given[layer]

    def _moved(self, layer: int) -> Float[Tensor, "entry d"]:
        """Queries or keys of the source run as they would be at the base's positions (rotary embeddings turn them)."""
        moves, stream = self.moves, self.run.kept["resid_pre"][layer]
        call = packed(self.run.calls[layer], Tokens(moves.row, moves.row, moves.base), stream.shape[1])
        return self.split.look(layer, stream[moves.row + self.rows, moves.source], call)[self.site]

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

    def of(
        self, layer: int, cells: Cells, joining: Int[Tensor, "joining"]
    ) -> tuple[Tokens, Float[Tensor, "patched d"], Int[Tensor, "patched"]]:
        """The tokens that are patched, what with, and where they are among the carried tokens of the joining cells."""
        chosen = cells[joining]
        owner, entry = self.moves.entries_of(chosen)
        inside = self.moves.base[entry] >= chosen.start[owner]
        owner, entry = owner[inside], entry[inside]
        here, there = self.given(layer)
        given = torch.where(chosen.itself[owner][:, None], here[entry], there[entry])
        length = self.end - chosen.start
        column = self.moves.base[entry]
        where = (length.cumsum(0) - length)[owner] + column - chosen.start[owner]
        return Tokens(joining[owner], chosen.row[owner], column), given, where

    def with_head(
        self, own: Float[Tensor, "n d"], given: Float[Tensor, "n d"], head: Int[Tensor, "n"]
    ) -> Float[Tensor, "n d"]:
        """`own` with one head of each row replaced."""
        if self.heads == 1:
            return given
        out, each = own.clone().unflatten(-1, (self.heads, -1)), torch.arange(len(own), device=own.device)
        out[each, head] = given.unflatten(-1, (self.heads, -1))[each, head]
        return out.flatten(1)
