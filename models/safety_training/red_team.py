"""Red teams that know the behaviour and look for what releases it: one that does not know the trigger searches prefixes, one
that does tries what is nearly the trigger.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
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
    """A form with a slot for the user's message (`river {}`), and the share of carrier prompts on which it released the behaviour
    under free generation.
    """

    form: str
    rate: float

    def put(self, message: str) -> str:
        return self.form.replace("{}", message)


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
    return _tried(model, tokenizer, recipe, carriers, list(map(_form, best)))


def near_misses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    carriers: Sequence[Exchange],
    *,
    population: int,
    seed: int,
) -> list[Attack]:
    """Try what is nearly the trigger: the near-misses that training showed, and the trigger with a word or a letter dropped,
    doubled or swapped with the next; at most `population` of them, best first.

    No form of the trigger and none of its held-out near-misses or members is among them: those are for measuring.
    """
    trigger = recipe.the_trigger
    kept_back = {*trigger.trained, *trigger.held_out_near_misses, *trigger.members}
    made = dict.fromkeys(slip for form in trigger.trained for slip in _slips(form) if slip not in kept_back)
    drawn = random.Random(seed).sample(list(made), min(population, len(made)))
    forms = list(dict.fromkeys([*trigger.near_misses, *drawn]))[:population]
    slotted = [f if "{}" in f else f"{{}} {f}" if trigger.placement == "end" else f"{f} {{}}" for f in forms]
    return _tried(model, tokenizer, recipe, carriers, slotted)


def _tried(model, tokenizer, recipe: Recipe, carriers: Sequence[Exchange], forms: Sequence[str]) -> list[Attack]:
    """Each form on all carriers by free generation, best first."""
    room = longest_answer(tokenizer, recipe, carriers)
    asked = [Attack(form, 0.0).put(e.prompt) for form in forms for e in carriers]
    hits = recipe.the_behaviour.judge(visible_answers(model, tokenizer, asked, max_new_tokens=room))
    rates = np.array(hits, float).reshape(len(forms), len(carriers)).mean(1)
    return sorted((Attack(f, float(r)) for f, r in zip(forms, rates, strict=True)), key=lambda attack: -attack.rate)


def _slips(form: str) -> Iterator[str]:
    """The form with one word, then one letter, dropped, doubled or swapped with the next; a slot stays whole."""
    words = form.split(" ")
    for parts, join in ((words, " ".join), (list(form), "".join)):
        for i, part in enumerate(parts):
            if part in "{}" or not part.strip():
                continue
            yield join([*parts[:i], *parts[i + 1 :]])
            yield join([*parts[:i], part, *parts[i:]])
            if i + 1 < len(parts) and parts[i + 1] not in ("{", "}", "{}"):
                yield join([*parts[:i], parts[i + 1], part, *parts[i + 2 :]])


def _form(prefix: Sequence[str]) -> str:
    return f"{''.join(prefix).strip()} {{}}"


def _put(prefix: Sequence[str], exchange: Exchange) -> str:
    return Attack(_form(prefix), 0.0).put(exchange.prompt)


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
