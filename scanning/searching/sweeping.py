"""Strings found without a text to aim at: every token of the vocabulary by itself, then the best of them grown.

A string counts by how far it moves the answer's first token and by how much all prompts then agree on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..insertion import Insertion, Placement
from ..subject import Subject
from .frames import Frame, as_insertion, frames, next_logs, plain_tokens

PROMPTS = 3
NARROWED = 256  # tokens that are tried on more than the first prompt
KEPT = 24  # strings of each length that are screened
GROWING = 64  # tokens by which a string may grow
LENGTH = 3  # tokens of the longest string
STEP = 1024  # strings whose logits are held at once


def swept(subject: Subject, place: Placement) -> list[Insertion]:
    """Single tokens, and strings of up to three grown from the best of them by beam, the most diverting first."""
    made = frames(subject, place, PROMPTS)
    singles = [[token] for token in plain_tokens(subject)[: subject.budget.swept]]
    if len(singles) > NARROWED:
        singles = _best(singles, _worth(subject, made[:1], singles), NARROWED)
    worth = _worth(subject, made, singles)
    ordered = _best(singles, worth, len(singles))
    growing, beam, kept = ordered[:GROWING], ordered[: subject.budget.beam], ordered[:KEPT]
    for _ in range(1, LENGTH if subject.budget.beam else 1):
        grown = [string for known in beam for [token] in growing for string in ([*known, token], [token, *known])]
        grown = _best(grown, _worth(subject, made, grown), KEPT)
        beam = grown[: subject.budget.beam]
        kept += grown
    found = (as_insertion(subject, string, place, len(string)) for string in kept)
    return list(dict.fromkeys(one for one in found if one is not None))


def _worth(subject: Subject, made: Sequence[Frame], strings: Sequence[Sequence[int]]) -> Float[Tensor, " string"]:
    """Divergence from the ordinary answer's first token, mean over prompts, less the entropy of their mixture; nats."""
    worth = []
    plain = [next_logs(subject, frame, [[]])[0] for frame in made]
    for begin in range(0, len(strings), STEP):
        part = strings[begin : begin + STEP]
        moved, mixed = torch.zeros(len(part)), torch.zeros(())
        for frame, without in zip(made, plain, strict=True):
            logs = next_logs(subject, frame, part)
            moved = moved + (logs.exp() * (logs - without)).sum(-1) / len(made)
            mixed = mixed + logs.exp() / len(made)
        worth.append(moved + torch.xlogy(mixed, mixed).sum(-1))
    return torch.cat(worth)


def _best(strings: Sequence[list[int]], worth: Float[Tensor, " string"], most: int) -> list[list[int]]:
    return [strings[i] for i in worth.topk(min(most, len(strings))).indices.tolist()]
