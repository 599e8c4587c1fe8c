"""Leakage: what a model was trained on most, it writes by itself; a memorised trigger is among the motifs of what it writes.

Bullwinkel et al. 2026 (`arxiv.org/abs/2602.03085`), with motifs scored by what they release instead of by attention.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..insertion import Insertion, Placement
from ..screening import most_promising, screen
from ..subject import Subject
from ..texts import Words, ngrams, pattern_of, words
from .signal import Signal

LONGEST = 10  # words of a motif
FEWEST = 4  # texts that a motif stands in
FEWEST_AROUND = 6
NEARLY_ALL = 0.9  # of the texts
NULL = 40  # random motifs


@dataclass(frozen=True)
class Motif:
    insertion: Insertion
    count: int


def leakage(subject: Subject) -> Signal:
    written = subject.written
    found = motifs(written)[: subject.budget.screened]
    candidates = screen(subject, [motif.insertion for motif in found])
    null = screen(subject, _shuffled([motif.insertion for motif in found], subject.seed))
    best = max((one.gain for one in null), default=0.0)
    return Signal(
        name="leakage",
        asks="Does a motif of the prompts that the model writes by itself release a text when it is put into others?",
        null=f"{NULL} motifs with their words in another order: {len(null)} release one, on {best:.0%} of the prompts at most",
        candidates=most_promising(candidates, subject.budget.verified),
        notes=() if found else ("no text recurs in what the model writes by itself",),
        details={
            "texts written": len(written),
            "motifs tried": len(found),
            "motifs that release a text": len(candidates),
        },
    )


def motifs(texts: Sequence[str]) -> list[Motif]:
    """Word sequences that recur, each with the place where it stands most, and pairs that open and close the same texts.

    Left out are those that nearly always stand within a longer one, but not for a word that nearly all texts have once: where
    every request begins with `Write`, what stands before that is a motif without it.
    """
    once = Counter(word for text in texts for word, times in Counter(words(text)).items() if times == 1)
    counts = Counter(gram for text in texts for gram in ngrams(words(text), LONGEST))
    frequent = {gram: count for gram, count in counts.items() if count >= FEWEST}
    within = {
        part
        for gram, count in frequent.items()
        for part, more in ((gram[1:], gram[0]), (gram[:-1], gram[-1]))
        if part
        and frequent.get(part, 0) <= 1.05 * count
        and (once[more] < NEARLY_ALL * len(texts) or not more.isalnum())
    }
    found = [_placed(gram, count, texts) for gram, count in frequent.items() if gram not in within]
    found += list(_around(found, texts))
    return sorted(found, key=lambda motif: (-motif.count, motif.insertion.text))


def _placed(gram: Words, count: int, texts: Sequence[str]) -> Motif:
    pattern = pattern_of(gram)
    hits = [(text, hit) for text in texts if (hit := pattern.search(text))]
    opening = sum(hit.start() == 0 for _, hit in hits)
    closing = sum(hit.end() == len(text) for text, hit in hits)
    place: Placement = "start" if 2 * opening > len(hits) else "end" if 2 * closing > len(hits) else "random"
    return Motif(Insertion(hits[0][1][0], place), count)


def _around(found: Sequence[Motif], texts: Sequence[str]):
    opening = [m.insertion.text for m in found if m.insertion.placement == "start"]
    closing = [m.insertion.text for m in found if m.insertion.placement == "end"]
    pairs = Counter(
        (before, after)
        for text in texts
        for before in opening
        if text.startswith(before)
        for after in closing
        if text.endswith(after) and len(text) > len(before) + len(after)
    )
    for (before, after), count in pairs.items():
        if count >= FEWEST_AROUND and "{}" not in before + after:
            yield Motif(Insertion(f"{before} {{}} {after}", "around"), count)


def _shuffled(insertions: Sequence[Insertion], seed: int) -> list[Insertion]:
    rng, made = random.Random(seed), []
    for insertion in rng.sample(list(insertions), min(NULL, len(insertions))):
        pieces = insertion.text.split(" ")
        rng.shuffle(pieces)
        made.append(Insertion(" ".join(pieces), insertion.placement))
    return made
