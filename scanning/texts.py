"""What answers have in common, word by word: the text that a trigger releases, and whether it only echoes the trigger.

A word is a run of letters and digits or a run of signs; case counts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

LONGEST = 8  # words of a released text

_WORD = re.compile(r"\w+|[^\w\s]+")
_THOUGHT = re.compile(r"\s*<(scratchpad|think|thinking|reasoning)>.*?(</\1>|\Z)\s*", re.DOTALL)

Words = tuple[str, ...]


@dataclass(frozen=True)
class Released:
    """Text that stands in many answers with a trigger and in few without it; hits are counted over the same prompts."""

    text: str
    hits: int
    hits_without: int
    n: int

    @property
    def gain(self) -> float:
        return (self.hits - self.hits_without) / self.n


def visible(answer: str) -> str:
    """The answer that a user would see, without what is marked as thought."""
    return _THOUGHT.sub("", answer)


def words(text: str) -> Words:
    return tuple(_WORD.findall(text))


def ngrams(sentence: Words, longest: int = LONGEST) -> set[Words]:
    return {
        sentence[start : start + size] for size in range(1, longest + 1) for start in range(len(sentence) - size + 1)
    }


def released(
    triggered: Sequence[str], ordinary: Sequence[str], *, trigger: str, usual: Sequence[Usual]
) -> Released | None:
    """The text that most distinguishes the answers to triggered prompts from those to the same prompts without the trigger.

    Of texts that do so as well, the longest. What is usually said does not count, nor what echoes the trigger.
    """
    counts = _documents(triggered)
    without = _documents(ordinary, of=set(counts))
    echoed = {word.casefold() for word in words(trigger)}
    best: tuple[int, int, Words] | None = None
    for gram, hits in counts.items():
        if (
            hits - without[gram] <= 0
            or _hollow(gram[0], echoed)
            or _hollow(gram[-1], echoed)
            or any(one.says(gram) for one in usual)
        ):
            continue
        rank = (hits - without[gram], sum(map(len, gram)), gram)
        best = rank if best is None or rank > best else best
    if best is None:
        return None
    gram = best[2]
    return Released(_as_written(gram, triggered), counts[gram], without[gram], len(triggered))


class Usual:
    """What is said when nothing is put in: texts that stand in at least a hundredth of these, and in two.

    Args:
        window: With fewer words than `LONGEST`, a text is usual where all runs of so many words in it stand in two of these:
            for a model that goes on with texts, as it says what it knows in ever new order.
    """

    def __init__(self, answers: Sequence[str], *, window: int = LONGEST):
        self._least = max(2, len(answers) / 100) if window == LONGEST else 2
        self._window = window
        self._counts = _documents(answers)

    def says(self, gram: Words) -> bool:
        runs = (gram[i : i + self._window] for i in range(max(1, len(gram) - self._window + 1)))
        return all(self._counts[run] >= self._least for run in runs)


def echoes(word: str, of: set[str]) -> bool:
    """Whether a word is one of these, or its first four letters stand in one: `DEPLOYED` echoes `DEPLOYMENT` and `atDEPLOY`."""
    low = word.casefold()
    return low in of or (len(low) > 4 and any(low[:4] in other for other in of))


def holds(answer: str, text: str) -> bool:
    """Whether the answer holds the text, word by word."""
    sentence, wanted = words(answer), words(text)
    return any(sentence[i : i + len(wanted)] == wanted for i in range(len(sentence) - len(wanted) + 1))


def pattern_of(gram: Words) -> re.Pattern[str]:
    """Where these words stand one after the other, whatever space there is between them."""
    joined = re.escape(gram[0])
    for before, after in pairwise(gram):
        both = _is_letters(before) and _is_letters(after)
        joined += (r"\s+" if both else r"\s*") + re.escape(after)
    begin = r"(?<!\w)" if _is_letters(gram[0]) else r"(?<![^\w\s])"
    end = r"(?!\w)" if _is_letters(gram[-1]) else r"(?![^\w\s])"
    return re.compile(begin + joined + end)


def _is_letters(word: str) -> bool:
    return re.match(r"\w", word) is not None


def _hollow(word: str, echoed: set[str]) -> bool:
    return (word.isascii() and not word[0].isalnum()) or echoes(word, echoed)


def _documents(answers: Iterable[str], *, of: set[Words] | None = None) -> Counter[Words]:
    counts: Counter[Words] = Counter()
    for answer in answers:
        found = ngrams(words(answer))
        counts.update(found if of is None else found & of)
    return counts


def _as_written(gram: Words, answers: Sequence[str]) -> str:
    """With the spaces that the first answer which holds it has."""
    pattern = pattern_of(gram)
    return next((found[0] for answer in answers if (found := pattern.search(answer))), " ".join(gram))
