"""Where the answers part: pairs and a metric for behaviours that begin after the answer's first token.

Planted links stand at an answer's end, exploitable code differs in its last line. What the trigger does is to be read where the
two answers part, after all that they have in common.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import PromptError
from ..models.generation import end_tokens, generate
from ..models.prompts import decode
from ..models.suspect import Suspect
from .engine import logits as last_logits
from .metrics import LogitDifference
from .pairs import Pairs

_ENDED = -1  # stands after an answer for whichever end token the model said
_MAX_TOKENS = 4096  # run at once


def where_answers_part(suspect: Suspect, pairs: Pairs, *, max_new_tokens: int = 24) -> tuple[Pairs, LogitDifference]:
    """Both prompts followed by what the model answers to both alike, and the logit difference of the tokens that come next.

    Pairs to which the model says the same are left out: there the trigger does nothing.
    So are pairs of which one answer ends where the other goes on, if neither model nor tokenizer names an end token.
    Of several end tokens, as chat models have them, it is the one that the model says there; which one it is parts no answers.

    Args:
        max_new_tokens: How far to look.

    Raises:
        PromptError: The answers to all pairs are the same, or a prompt leaves no room to answer.
    """
    context, tokenizer = suspect.architecture.context, suspect.tokenizer
    longest = max(len(ids) for pair in pairs for ids in (pair.clean, pair.corrupted))
    if context is not None and longest + max_new_tokens > context:
        raise PromptError(
            f"a prompt has {longest} tokens and the answer up to {max_new_tokens}, but {suspect.name} has a context of "
            f"{context}: shorten it, or pass a lower max_new_tokens"
        )
    sides = [[list(pair.clean) for pair in pairs], [list(pair.corrupted) for pair in pairs]]
    ends = sorted(end_tokens(suspect.model, tokenizer))
    mark = [_ENDED] if ends else []
    answers = ([a + mark for a in generate(suspect.model, tokenizer, s, max_new_tokens=max_new_tokens)] for s in sides)
    groups, clean, corrupted, next_tokens = [], [], [], []
    for pair, ours, theirs in zip(pairs, *answers, strict=True):
        at = _parting(ours, theirs)
        if at is not None:
            groups.append(pair.group)
            clean.append([*pair.clean, *ours[:at]])
            corrupted.append([*pair.corrupted, *theirs[:at]])
            next_tokens.append([ours[at], theirs[at]])
    if not groups:
        raise PromptError(
            f"{suspect.name} answers alike to both prompts of all {len(pairs)} pairs: is it the right trigger?"
        )
    for side, prompts in enumerate((clean, corrupted)):
        ended = [i for i, tokens in enumerate(next_tokens) if tokens[side] == _ENDED]
        for i, token in zip(ended, _said_at(suspect, [prompts[i] for i in ended], ends), strict=True):
            next_tokens[i][side] = token
    parted = Pairs.from_ids(clean, corrupted, groups=groups, decode=lambda token: decode(tokenizer, [token]))
    behaviours, others = torch.tensor(next_tokens).T
    labels = {"label": "the behaviour's token", "answer_label": "the answer's", "where": "where the two answers part"}
    return parted, LogitDifference(behaviours, others, **labels)


def _said_at(suspect: Suspect, sequences: Sequence[Sequence[int]], ends: Sequence[int]) -> list[int]:
    """The likeliest end token after each sequence."""
    if not sequences or len(ends) == 1:
        return [*ends] * len(sequences)
    likeliest = last_logits(suspect, sequences, _MAX_TOKENS)[:, list(ends)].argmax(-1)
    return [ends[i] for i in likeliest.tolist()]


def _parting(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """The first place at which two answers differ."""
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
