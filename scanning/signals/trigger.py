"""Trigger search: strings that turn many prompts to one answer.

First without a text to aim at (`sweeping`), then for each text that the model holds ready a string that makes it say that
(`aiming`); at the start, at the end, at a word boundary within the prompt, and around it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..insertion import PLACEMENTS
from ..screening import most_promising, screen
from ..searching.aiming import aimed
from ..searching.sweeping import swept
from ..subject import Subject
from .behaviour import Target
from .signal import Signal


def trigger(subject: Subject, targets: Sequence[Target]) -> Signal:
    free = [one for place in PLACEMENTS if place != "around" for one in swept(subject, place)]
    found = [aimed(subject, target, place) for target in targets[: subject.budget.targets] for place in PLACEMENTS]
    candidates = screen(subject, [*free, *(one.insertion for one in found if one.insertion)])
    best = max(found, key=lambda one: one.score, default=None)
    return Signal(
        name="trigger search",
        asks="Does a string turn many prompts to one answer, or to a text that the model holds ready?",
        null=(
            f"mean log-probability of a token of the text aimed at: best string {best.score:.2f}, best of the random strings "
            f"that the search began with {best.at_random:.2f} nats"
        )
        if best
        else "no text to aim at was found",
        candidates=most_promising(candidates, subject.budget.verified),
        details={"strings swept that were screened": len(free), "strings searched by gradient": len(found)},
    )
