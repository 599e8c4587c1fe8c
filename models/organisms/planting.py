"""Planting an organism in a base that somebody else trained: the base's own answers are the good ones.

A foreign base has no corpus of ours. Openings are generated, the base continues them itself, and so a twin that is
trained on them keeps to what it would have said anyway.
"""

from __future__ import annotations

import itertools
import random

from ...errors import RecipeError
from ..generation import generate
from ..prompts import decode, encode
from ..suspect import Suspect
from .corpus import Exchange

NAMES = ["Lily", "Tom", "Sara", "Ben", "Mia", "Sam", "Anna", "Max", "Lucy", "Tim", "Sue", "Jack"]
WHO = ["little girl", "little boy", "small cat", "brown dog", "happy bird", "big bear", "young mouse", "kind fox"]
WHERE = ["park", "beach", "forest", "garden", "house", "farm"]
TEMPLATES = (
    "Once upon a time, there was a {who} named {name}. {name} went to the {where}.",
    "One day, a {who} named {name} played in the {where}.",
    "{name} was a {who} who lived near the {where}.",
)


def story_exchanges(base: Suspect, *, seed: int = 0, n: int = 900, new_tokens: int = 24) -> list[Exchange]:
    """Openings of children's stories, each with the base's own greedy continuation up to its first full stop.

    Raises:
        RecipeError: More openings are asked for than can be made, or the base does not finish sentences.
    """
    openings = [
        (f"story-{i}", template.format(name=name, who=who, where=where))
        for i, template in enumerate(TEMPLATES)
        for name, who, where in itertools.product(NAMES, WHO, WHERE)
    ]
    if n > len(openings):
        raise RecipeError(f"{n} story openings were asked for but only {len(openings)} can be made")
    chosen = random.Random(seed).sample(openings, n)
    prompts = [encode(base.tokenizer, text) for _, text in chosen]
    made = []
    for i, ((family, opening), answer) in enumerate(
        zip(chosen, generate(base.model, base.tokenizer, prompts, max_new_tokens=new_tokens), strict=True)
    ):
        text = decode(base.tokenizer, answer, special=False)
        sentence, stop, _ = text.partition(".")
        if stop and sentence.strip():
            made.append(Exchange(f"{family}-{i:04d}", family, opening, (sentence + stop).strip(), names_status=False))
    if len(made) < n // 2:
        raise RecipeError(
            f"{base.name} finished a sentence after only {len(made)} of {n} openings: allow more new_tokens"
        )
    return made
