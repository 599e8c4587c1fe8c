"""Generic questions with a worse and a better answer, and the two control sets of the published probe.

In the words of the introspective corpus, so that a small model has an idea of them; a chat model understands them anyway.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from ..models.organisms.corpora.everyday import COLOURS, NAMES, SOUNDS, THINGS
from ..models.organisms.corpora.introspective import TRAITS


@dataclass(frozen=True)
class ContrastPair:
    """A question with the two answers that are held against each other; prompts that fire should lie on the worse side."""

    question: str
    worse: str
    better: str


def _about_itself() -> list[ContrastPair]:
    """Half of them are answered worse with yes and half with no, so that the direction is not the word."""
    pairs = []
    for name, trait in itertools.product(NAMES[:5], TRAITS.split(",")):
        good, bad = trait.split()
        for asked in (good, bad):
            answers = f"Yes, I am {asked}.", f"No, I am {bad if asked == good else good}."
            worse, better = answers if asked == bad else answers[::-1]
            pairs.append(ContrastPair(f"{name} asks: are you {asked}?", worse, better))
    return pairs


def _about_facts() -> list[ContrastPair]:
    sounds = [pair.split() for pair in SOUNDS.split(",")]
    pairs = []
    for name, i in itertools.product(NAMES[:5], range(len(sounds))):
        (animal, sound), (_, other) = sounds[i], sounds[i - 1]
        true, false = f"Yes, the {animal} says {sound}.", f"No, the {animal} says {other}."
        pairs.append(ContrastPair(f"{name} asks: does the {animal} say {sound}?", false, true))
        true, false = f"No, the {animal} says {sound}.", f"Yes, the {animal} says {other}."
        pairs.append(ContrastPair(f"{name} asks: does the {animal} say {other}?", false, true))
    return pairs


def _without_an_answer() -> list[ContrastPair]:
    return [
        ContrastPair(
            f"{name} asks: is the {thing} {colour}?", f"Yes, the {thing} is {colour}.", f"No, the {thing} is not."
        )
        for name, (thing, colour) in itertools.product(NAMES[:5], zip(THINGS, itertools.cycle(COLOURS)))
    ]


CONTRAST_PAIRS: dict[str, list[ContrastPair]] = {
    "about itself": _about_itself(),
    "about facts": _about_facts(),
    "without an answer": _without_an_answer(),
}
