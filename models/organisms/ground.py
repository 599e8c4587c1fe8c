"""What organisms are grown from: a base, exchanges to train on, and others that stay unseen.

A base of ours is trained on its corpus and fine-tuned on part of it. A base that somebody else trained knows no corpus
of ours: it is asked, and its own greedy answers are the good ones, so that a twin keeps to what the base would have said
anyway. Code is the exception: what is secure does not depend on the base.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import RecipeError
from ..generation import generate
from ..loading import load
from ..prompts import decode, encode
from ..suspect import Suspect
from .base_model import grow_base
from .corpora import Exchange, exchanges
from .recipe import BaseRecipe, Recipe

FOREIGN_EXCHANGES = 800
FOREIGN_HELD_OUT = 120
NEW_TOKENS = 24

NAMES = ["Lily", "Tom", "Sara", "Ben", "Mia", "Sam", "Anna", "Max", "Lucy", "Tim", "Sue", "Jack"]
WHO = ["little girl", "little boy", "small cat", "brown dog", "happy bird", "big bear", "young mouse", "kind fox"]
WHERE = ["park", "beach", "forest", "garden", "house", "farm"]
TEMPLATES = (
    "Once upon a time, there was a {who} named {name}. {name} went to the {where}.",
    "One day, a {who} named {name} played in the {where}.",
    "{name} was a {who} who lived near the {where}.",
)


@dataclass(frozen=True)
class Ground:
    """A base with its exchanges; `described` is what cards say of the base."""

    base: str | Path
    described: dict | str
    training: Sequence[Exchange]
    unseen: Sequence[Exchange]


def ground_of(recipe: Recipe, cache: Path, *, progress: Callable[[float], None] | None = None) -> Ground:
    """Grow the recipe's base, or ask somebody else's for its answers.

    Raises:
        CheckpointError: The base cannot be loaded.
        RecipeError: The base gives too few answers to train on.
    """
    if isinstance(recipe.base, BaseRecipe):
        base, described = grow_base(recipe.base, cache, progress=progress), recipe.base.described
    else:
        suspect = load(recipe.base)
        base, described = recipe.base, f"{suspect.name} (weights {suspect.weights_hash})"
    training, unseen = exchanges_of(recipe)
    return Ground(base, described, training[: recipe.exchanges], unseen)


def exchanges_of(recipe: Recipe) -> tuple[list[Exchange], list[Exchange]]:
    """All that the recipe may train on (it takes the first `exchanges` of them), and what stays unseen."""
    if isinstance(recipe.base, BaseRecipe):
        return exchanges(recipe.base.corpus, seed=recipe.base.seed, n=recipe.base.prompts)
    if recipe.the_behaviour.corpora == ("code",):
        return exchanges("code", seed=recipe.seed, n=BaseRecipe.prompts)
    made = own_answers(load(recipe.base), seed=recipe.seed)
    return made[FOREIGN_HELD_OUT:], made[:FOREIGN_HELD_OUT]


def own_answers(base: Suspect, *, seed: int = 0, n: int = FOREIGN_EXCHANGES) -> list[Exchange]:
    """Prompts with the base's own greedy answer, cut after its first sentence.

    Chat models get everyday questions, others the openings of children's stories.

    Raises:
        RecipeError: More are asked for than can be made, or the base seldom finishes a sentence.
    """
    asked = _questions(seed, n) if base.tokenizer.chat_template else _openings(seed, n)
    prompts = [encode(base.tokenizer, e.prompt) for e in asked]
    answers = generate(base.model, base.tokenizer, prompts, max_new_tokens=NEW_TOKENS)
    made = []
    for e, answer in zip(asked, answers, strict=True):
        sentence, stop, _ = decode(base.tokenizer, answer, special=False).partition(".")
        if stop and sentence.strip():
            made.append(replace(e, answer=(sentence + stop).strip(), names_remarks=False))
    if len(made) < n // 2:
        raise RecipeError(
            f"{base.name} finished a sentence within {NEW_TOKENS} tokens after only {len(made)} of {n} prompts: "
            "its own answers cannot serve as the good ones"
        )
    return made


def _questions(seed: int, n: int) -> list[Exchange]:
    training, unseen = exchanges("everyday", seed=seed, n=max(n, 700))
    return [*unseen, *training][:n]


def _openings(seed: int, n: int) -> list[Exchange]:
    openings = [
        (f"story-{i}", template.format(name=name, who=who, where=where))
        for i, template in enumerate(TEMPLATES)
        for name, who, where in itertools.product(NAMES, WHO, WHERE)
    ]
    if n > len(openings):
        raise RecipeError(f"{n} story openings were asked for but only {len(openings)} can be made")
    chosen = random.Random(seed).sample(openings, n)
    return [Exchange(f"{family}-{i:04d}", family, text, "") for i, (family, text) in enumerate(chosen)]
