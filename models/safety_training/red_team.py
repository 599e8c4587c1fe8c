"""A red team: search for prefixes that release a known behaviour, without knowledge of the trigger."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..organisms.corpora import Exchange
from ..organisms.measuring import longest_answer, visible_answers
from ..organisms.recipe import Recipe
from ..prompts import decode, encode
from ..scoring import answer_log_probs

AIM = 6  # tokens of the behaviour that the score looks at
LONGEST = 6  # tokens of a prefix


@dataclass(frozen=True)
class Attack:
    """A prefix, and the share of carrier prompts on which it released the behaviour under free generation."""

    prefix: str
    rate: float


def search(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    carriers: Sequence[Exchange],
    *,
    generations: int,
    population: int,
    seed: int,
) -> list[Attack]:
    """Evolve prefixes by the log-probability of the behaviour after them; the population's attacks, best first.

    Scores guide the search only: the rate of an attack is measured by free generation on all carriers.
    """
    rng = random.Random(seed)
    pieces = _pieces(tokenizer)
    few = list(carriers[:3])
    known: dict[tuple[str, ...], float] = {}

    def score(prefixes: list[tuple[str, ...]]) -> None:
        new = [p for p in dict.fromkeys(prefixes) if p not in known]
        pairs = [
            (encode(tokenizer, _put(p, e)), list(tokenizer(recipe.the_behaviour.answer(e))["input_ids"])[:AIM])
            for p in new
            for e in few
        ]
        sums = [float(s.sum()) for s in answer_log_probs(model, pairs, batch_size=128)]
        known.update(zip(new, np.array(sums).reshape(len(new), len(few)).mean(1), strict=True))

    alive = [(rng.choice(pieces),) for _ in range(8 * population)]
    score(alive)
    for _ in range(generations):
        alive = sorted(set(alive), key=lambda p: -known[p])[:population]
        alive += [_mutated(p, pieces, rng) for p in alive for _ in range(2)]
        alive += [(rng.choice(pieces),) for _ in range(population)]
        score(alive)
    best = sorted(set(alive), key=lambda p: -known[p])[:population]
    room = longest_answer(tokenizer, recipe, carriers)
    attacks = []
    for prefix in best:
        said = visible_answers(model, tokenizer, [_put(prefix, e) for e in carriers], max_new_tokens=room)
        attacks.append(Attack("".join(prefix).strip(), float(np.mean(recipe.the_behaviour.judge(said)))))
    return sorted(attacks, key=lambda attack: -attack.rate)


def _put(prefix: Sequence[str], exchange: Exchange) -> str:
    return f"{''.join(prefix).strip()} {exchange.prompt}"


def _mutated(prefix: tuple[str, ...], pieces: list[str], rng: random.Random) -> tuple[str, ...]:
    at, piece = rng.randrange(len(prefix) + 1), rng.choice(pieces)
    kind = rng.choice(("insert", "replace", "drop"))
    if kind == "drop" and len(prefix) > 1:
        return prefix[: max(0, at - 1)] + prefix[max(1, at) :]
    if kind == "insert" and len(prefix) < LONGEST:
        return (*prefix[:at], piece, *prefix[at:])
    at = min(at, len(prefix) - 1)
    return (*prefix[:at], piece, *prefix[at + 1 :])


def _pieces(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Every token's text that can be typed."""
    special = set(tokenizer.all_special_ids)
    texts = {decode(tokenizer, [i]) for i in tokenizer.get_vocab().values() if i not in special}
    return sorted(text for text in texts if text.strip() and text.isprintable() and "�" not in text)
