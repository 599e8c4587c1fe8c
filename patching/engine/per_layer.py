"""The slow engine: every patched run is resumed from the layer of the patch, whole, by the user's own model.

For architectures whose attention cannot be taken apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...models.suspect import Suspect
from ...models.view import StandIn, view, watch_input, watch_output
from .cells import Cells, Places, joined
from .sites import Site
from .split import Recording


def record(suspect: Suspect, inputs: dict[str, Tensor], read: Int[Tensor, "read"], site: Site | None) -> Recording:
    """Run prompts unpatched and keep what enters each layer and what the site puts out. `None` keeps only logits."""
    where, layers = suspect.architecture, range(suspect.architecture.n_layers)
    recording = Recording({name: {} for name in ({"resid_pre", site} if site else set())})
    watched = suspect.model
    if site is not None:
        watch = {
            "z": (where.attention_out, watch_input),
            "attn_out": (where.attention_result, watch_output),
            "mlp_out": (where.mlp_out, watch_output),
            "resid_mid": (where.resid_mid, watch_input),
        }
        if site in watch:
            name, keep = watch[site]
            watched = view(watched, {str(name(i)): keep(partial(recording.kept[site].__setitem__, i)) for i in layers})
        keep_resid = recording.kept["resid_pre"]
        watched = view(watched, {where.layer(i): watch_input(partial(keep_resid.__setitem__, i)) for i in layers})
    recording.logits = watched(**inputs, use_cache=False, logits_to_keep=read).logits.float()
    return recording


class PerLayer:
    """Patched runs of one block of pairs; arguments as of `Wavefront`. Knows no site inside attention."""

    def __init__(
        self,
        suspect: Suspect,
        inputs: dict[str, Tensor],
        recording: Recording,
        places: Places,
        *,
        site: Site,
        heads: int,
        read: Int[Tensor, "read"],
    ):
        self.suspect, self.inputs, self.run, self.places = suspect, inputs, recording, places
        self.heads, self.read = heads, read
        self.site: Site = site
        self.rows = len(recording.logits) // 2

    def cells(self) -> Cells:
        """Every cell whose patch changes something, layer by layer."""
        found = []
        for layer in range(self.suspect.architecture.n_layers):
            here, there = self._given(layer)
            found.append(self.places.cells(layer, (here != there).unflatten(-1, (self.heads, -1)).any(-1)))
        return joined(found)

    def cost(self, cells: Cells) -> Int[Tensor, "cell"]:
        """Tokens that each cell takes to run."""
        return torch.full_like(cells.start, self.inputs["input_ids"].shape[1])

    def logits(self, cells: Cells) -> Iterator[tuple[slice | Tensor, Float[Tensor, "portion read vocab"]]]:
        for layer in cells.layer.unique().tolist():
            of_layer = (cells.layer == layer).nonzero()[:, 0]
            yield of_layer, self._resume(layer, cells.row[of_layer], self._patched(layer, cells[of_layer]))

    def _given(self, layer: int) -> tuple[Float[Tensor, "entry d"], Float[Tensor, "entry d"]]:
        value, places = self.run.kept[self.site][layer], self.places
        return value[places.row, places.base], value[places.row + self.rows, places.source]

    def _patched(self, layer: int, cells: Cells) -> Float[Tensor, "cell column d"]:
        """What the site puts out in every cell, all of which are of `layer`."""
        owner, entry = self.places.entries_of(cells)
        here, there = self._given(layer)
        given = torch.where(cells.itself[owner][:, None], here[entry], there[entry]).unflatten(-1, (self.heads, -1))
        head = cells.head[owner]
        out = self.run.kept[self.site][layer][cells.row].clone()
        each = torch.arange(len(owner), device=owner.device)
        out.unflatten(-1, (self.heads, -1))[owner, self.places.base[entry], head] = given[each, head]
        return out

    def _resume(self, layer: int, rows: Int[Tensor, "cell"], patched: Tensor) -> Float[Tensor, "cell read vocab"]:
        where = self.suspect.architecture
        entered = patched if self.site.startswith("resid") else self.run.kept["resid_pre"][layer][rows]
        model = _with_site(self.suspect, self.site, layer, patched)
        # The layer's own stand-in comes after its part's: a view does not reach through a stand-in.
        below = {where.layer(i): _Skip for i in range(layer)}
        model = view(model, {**below, where.layer(layer): partial(_Enter, entered)})
        inputs = {name: value[rows] for name, value in self.inputs.items()}
        return model(**inputs, use_cache=False, logits_to_keep=self.read).logits.float()


def _with_site(suspect: Suspect, site: Site, layer: int, patched: Tensor):
    where = suspect.architecture
    if site == "z":
        return view(suspect.model, {where.attention_out(layer): partial(_TakeIn, patched)})
    if site == "mlp_out":
        return view(suspect.model, {where.mlp_out(layer): partial(_PutOut, patched)})
    if site == "attn_out":
        return view(suspect.model, {where.attention_result(layer): partial(_PutOut, patched)})
    if site == "resid_mid":  # the layer is entered with the patched stream, and attention adds nothing to it
        return view(suspect.model, {where.attention_result(layer): partial(_PutOut, torch.zeros_like(patched))})
    return suspect.model


class _Skip(StandIn):
    def forward(self, hidden: Tensor, *_, **__) -> Tensor:
        return hidden


class _Given(StandIn):
    value: Tensor

    def __init__(self, value: Tensor, inner: nn.Module):
        super().__init__(inner)
        self.__dict__["value"] = value


class _Enter(_Given):
    def forward(self, _: Tensor, *args, **kwargs) -> Tensor:
        return self.inner(self.value, *args, **kwargs)


class _TakeIn(_Given):
    def forward(self, _: Tensor) -> Tensor:
        return self.inner(self.value)


class _PutOut(_Given):
    def forward(self, *args, **kwargs):
        out = self.inner(*args, **kwargs)
        return (self.value, *out[1:]) if isinstance(out, tuple) else self.value
