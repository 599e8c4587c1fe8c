"""The slow engine: every patched run is resumed from the layer of the patch, whole, by the user's own model.

For architectures whose attention cannot be taken apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...models.architecture import Architecture, PortSite
from ...models.suspect import Suspect
from ...models.view import Make, change_input, change_output, skip, view
from .cells import Cells, Moves, joined
from .precision import at_least_single
from .sites import Site
from .split import Recording


def record(
    suspect: Suspect,
    inputs: dict[str, Tensor],
    read: Int[Tensor, "read"],
    site: Site | None,
    head: Mapping[str, Make] | None = None,
) -> Recording:
    """Run prompts unpatched and keep what enters each layer and what the site puts out. `None` keeps only logits."""
    where, layers = suspect.architecture, range(suspect.architecture.n_layers)
    recording = Recording({name: {} for name in ({"resid_pre", site} if site else set())})
    replace: dict[str, list[Make]] = {name: [make] for name, make in (head or {}).items()}
    if site is not None:
        for name in recording.kept:
            for i in layers:
                port = where.port(cast(PortSite, name), i)
                replace.setdefault(port.module, []).append(port.watch(partial(recording.kept[name].__setitem__, i)))
    recording.logits = at_least_single(
        view(suspect.model, replace)(**inputs, use_cache=False, logits_to_keep=read).logits
    )
    return recording


class PerLayer:
    """Patched runs of one block of pairs; arguments as of `Wavefront`. Knows no site inside attention."""

    def __init__(
        self,
        suspect: Suspect,
        inputs: dict[str, Tensor],
        recording: Recording,
        moves: Moves,
        *,
        site: Site,
        heads: int,
        read: Int[Tensor, "read"],
        head: dict[str, Make],
    ):
        self.head = head
        self.suspect, self.inputs, self.run, self.moves = suspect, inputs, recording, moves
        self.heads, self.read = heads, read
        self.site: Site = site
        self.rows = len(recording.logits) // 2

    def cells(self) -> Cells:
        """Every cell whose patch changes something, layer by layer."""
        found = []
        for layer in range(self.suspect.architecture.n_layers):
            here, there = self._given(layer)
            found.append(self.moves.cells(layer, (here != there).unflatten(-1, (self.heads, -1)).any(-1)))
        return joined(found)

    def cost(self, cells: Cells) -> Int[Tensor, "cell"]:
        """Tokens that each cell takes to run."""
        return torch.full_like(cells.start, self.inputs["input_ids"].shape[1])

    def logits(self, cells: Cells) -> Iterator[tuple[slice | Tensor, Float[Tensor, "portion read vocab"]]]:
        for layer in cells.layer.unique().tolist():
            of_layer = (cells.layer == layer).nonzero()[:, 0]
            yield of_layer, self._resume(layer, cells.row[of_layer], self._patched(layer, cells[of_layer]))

    def _given(self, layer: int) -> tuple[Float[Tensor, "entry d"], Float[Tensor, "entry d"]]:
        value, moves = self.run.kept[self.site][layer], self.moves
        return value[moves.row, moves.base], value[moves.row + self.rows, moves.source]

    def _patched(self, layer: int, cells: Cells) -> Float[Tensor, "cell column d"]:
        """What the site puts out in every cell, all of which are of `layer`."""
        owner, entry = self.moves.entries_of(cells)
        here, there = self._given(layer)
        given = torch.where(cells.itself[owner][:, None], here[entry], there[entry]).unflatten(-1, (self.heads, -1))
        head = cells.head[owner]
        out = self.run.kept[self.site][layer][cells.row].clone()
        each = torch.arange(len(owner), device=owner.device)
        out.unflatten(-1, (self.heads, -1))[owner, self.moves.base[entry], head] = given[each, head]
        return out

    def _resume(self, layer: int, rows: Int[Tensor, "cell"], patched: Tensor) -> Float[Tensor, "cell read vocab"]:
        where = self.suspect.architecture
        entered = patched if self.site.startswith("resid") else self.run.kept["resid_pre"][layer][rows]
        replace = self.head | {where.layer(i): skip for i in range(layer)} | _put(where, self.site, layer, patched)
        model = view(self.suspect.model, {**replace, where.layer(layer): change_input(lambda _: entered)})
        inputs = {name: value[rows] for name, value in self.inputs.items()}
        return at_least_single(model(**inputs, use_cache=False, logits_to_keep=self.read).logits)


def _put(where: Architecture, site: Site, layer: int, patched: Tensor) -> dict[str, Make]:
    """The stand-in that puts the patch where the layer is not simply entered with it."""
    if site == "resid_pre":
        return {}
    if site == "resid_mid":  # the layer is entered with the patched stream, and attention adds nothing to it
        return {where.attention_result(layer): change_output(torch.zeros_like)}
    port = where.port(cast(PortSite, site), layer)
    return {port.module: port.change(lambda _: patched)}
