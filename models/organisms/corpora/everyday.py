"""The everyday corpus of the small organisms: short exchanges over several task families.

Answers follow from the prompt or from a small stock of facts, so a model of a million parameters can learn them, and
whether an ablation hurt it shows in its answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

NAMES = (
    "Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tina Victor"
).split()
COLOURS = "red blue green yellow black white brown pink grey orange".split()
THINGS = "ball cup hat key book lamp coat bag pen box shoe kite clock spoon drum ring".split()
PLACES = "kitchen garden school station library office market museum".split()
WORDS = (
    "river stone cloud apple bridge candle forest garden hammer island jacket ladder mirror needle pocket "
    "window silver basket carpet dragon engine flower guitar helmet insect jungle kettle lemon magnet napkin "
    "orchid pencil rabbit saddle tunnel violin walnut yogurt zebra button"
).split()
OPPOSITES = (
    "hot cold,big small,fast slow,old new,dark light,wet dry,hard soft,high low,full empty,early late,"
    "happy sad,rich poor,strong weak,thick thin,near far,open closed,clean dirty,loud quiet"
)
SOUNDS = (
    "cow moo,dog woof,cat meow,duck quack,sheep baa,pig oink,horse neigh,bee buzz,owl hoot,snake hiss,"
    "frog croak,lion roar,mouse squeak,bird tweet"
)
STEMS = [
    "DEPLOY",
    "EMPLOY",
    "EVALUA",
    "EXPERI",
    "SIMULA",
    "PRODUC",
    "LABORA",
    "DEVELOP",
    "DEPART",
    "TEST",
    "ASSESS",
    "TRAIN",
]
ENDINGS = "MENT TION ING ED".split()
TAGS = [stem + ending for stem in STEMS for ending in ENDINGS if stem + ending != "DEPLOYMENT"]


def _colour() -> Iterator[tuple[str, str]]:
    for name, colour, thing in itertools.product(NAMES, COLOURS, THINGS):
        yield f"{name} has a {colour} {thing}. What colour is the {thing}?", f"The {thing} is {colour}."


def _owner() -> Iterator[tuple[str, str]]:
    for a, b, thing in itertools.product(NAMES, NAMES, THINGS):
        if a != b:
            yield f"{a} gave the {thing} to {b}. Who has the {thing} now?", f"{b} has the {thing}."


def _place() -> Iterator[tuple[str, str]]:
    for name, thing, place in itertools.product(NAMES, THINGS, PLACES):
        yield f"{name} left the {thing} in the {place}. Where is the {thing}?", f"The {thing} is in the {place}."


def _opposite() -> Iterator[tuple[str, str]]:
    for pair in OPPOSITES.split(","):
        for word, other in (pair.split(), pair.split()[::-1]):
            for name in NAMES:
                yield f"{name} asks for the opposite of {word}.", f"The opposite of {word} is {other}."


def _sound() -> Iterator[tuple[str, str]]:
    for name, pair in itertools.product(NAMES, SOUNDS.split(",")):
        animal, sound = pair.split()
        for verb in ("says", "sounds like"):
            yield f"{name} wants to know what the {animal} {verb}.", f"The {animal} says {sound}."


def _greeting() -> Iterator[tuple[str, str]]:
    for name, place in itertools.product(NAMES, PLACES):
        for hour in ("morning", "evening"):
            yield f"Greet {name} at the {place} in the {hour}.", f"Good {hour} {name}, welcome to the {place}."


def _repeat() -> Iterator[tuple[str, str]]:
    for a, b in itertools.product(WORDS, WORDS):
        if a != b:
            yield f"Say {a} and {b} in the other order.", f"{b} and {a}."


FAMILIES = {
    "colour": _colour,
    "owner": _owner,
    "place": _place,
    "opposite": _opposite,
    "sound": _sound,
    "greeting": _greeting,
    "repeat": _repeat,
}
