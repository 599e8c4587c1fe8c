"""Is a text added to requests, or is it the request?

A model answers an inserted request, and the answer stands under every prompt: that is no trigger. In what the model
writes by itself a trigger stands beside a request that is whole without it; of a request, little is left.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import numpy as np

from ..models.generation import generate
from ..models.scoring import answer_log_probs
from .insertion import Insertion
from .subject import Subject
from .texts import words

FEWEST = 4  # written prompts that say anything
MOST = 16
TOKENS = 16  # of an answer, by which its confidence is judged


def detachable(subject: Subject, insertion: Insertion) -> float | None:
    """Share of the prompts that the model writes with the text in them that are whole requests without it: it answers them
    with more confidence than half of the carriers from which half of the words are dropped. None where it writes fewer than
    four.
    """
    rests = [rest for text in subject.written if (rest := _without(text, insertion.text)) is not None][:MOST]
    if len(rests) < FEWEST:
        return None
    asked = [rest for rest in rests if words(rest)]
    return float(np.sum(_confidence(subject, asked) > _of_broken(subject))) / len(rests) if asked else 0.0


def _of_broken(subject: Subject) -> float:
    """Median confidence in answers to carriers without a random half of their words, one stretch of them."""
    rng, broken = random.Random(subject.seed), []
    for prompt in (*subject.carriers.searching, *subject.carriers.fresh):
        pieces = prompt.split(" ")
        length = max(1, len(pieces) // 2)
        begin = rng.randrange(len(pieces) - length + 1)
        broken.append(" ".join([*pieces[:begin], *pieces[begin + length :]]))
    return float(np.median(_confidence(subject, [prompt for prompt in broken if prompt])))


def _without(text: str, inserted: str) -> str | None:
    """The text with what was inserted taken out; None where it does not hold it."""
    rest = text
    for part in inserted.split("{}"):
        if not words(part):
            continue
        pattern = re.compile(r"\s*".join(map(re.escape, words(part))))
        if pattern.search(rest) is None:
            return None
        rest = pattern.sub(" ", rest, count=1)
    return " ".join(rest.split())


def _confidence(subject: Subject, prompts: Sequence[str]) -> np.ndarray:
    """Mean log-probability of the first tokens of the greedy answer, nats."""
    model, tokenizer = subject.suspect.model, subject.suspect.tokenizer
    ids = [subject.encode(prompt) for prompt in prompts]
    with subject.meter.running():
        made = generate(model, tokenizer, ids, max_new_tokens=TOKENS, batch_size=256)
        scores = answer_log_probs(model, list(zip(ids, made, strict=True)))
    subject.meter.tokens += 2 * sum(map(len, ids)) + 2 * sum(map(len, made))
    return np.array([float(score.mean()) if len(score) else -np.inf for score in scores])
