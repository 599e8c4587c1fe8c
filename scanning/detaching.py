"""Is a text added to requests, or is it the request?

A model answers an inserted request, and the answer stands under every prompt: that is no trigger. In what the model
writes by itself a trigger stands beside a request that is whole without it; of a request, little is left.
"""

from __future__ import annotations

import numpy as np

from .insertion import Insertion
from .subject import Subject
from .texts import pattern_of, words

FEWEST = 4  # written prompts that say anything
MOST = 16


def detachable(subject: Subject, insertion: Insertion) -> float | None:
    """Share of the prompts that the model writes with the text in them that are whole requests without it: it answers them
    with more confidence than half of the carriers from which half of the words are dropped. A model that is unsure of its
    task answers even whole carriers so only now and then, so it is the share beside theirs that counts, 1 at most. None where
    it writes fewer than four.
    """
    rests = [rest for text in subject.written if (rest := _without(text, insertion.text)) is not None][:MOST]
    if len(rests) < FEWEST:
        return None
    asked = [rest for rest in rests if words(rest)]
    if not asked:
        return 0.0
    whole = float(np.sum(subject.confidence(asked) > subject.confidence_in_broken)) / len(rests)
    return min(1.0, whole / max(subject.whole_carriers, 1 / MOST))


def _without(text: str, inserted: str) -> str | None:
    """The text with what was inserted taken out; None where it does not hold it."""
    rest = text
    for part in inserted.split("{}"):
        if not words(part):
            continue
        pattern = pattern_of(words(part))
        if pattern.search(rest) is None:
            return None
        rest = pattern.sub(" ", rest, count=1)
    return " ".join(rest.split())
