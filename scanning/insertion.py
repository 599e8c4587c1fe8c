"""A text and where in a prompt it is put: what a candidate trigger is."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, get_args

Placement = Literal["start", "end", "random", "around"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)


@dataclass(frozen=True)
class Insertion:
    """A text put before a prompt, after it, at a word boundary within it, or around it (then `{}` stands for the prompt)."""

    text: str
    placement: Placement = "start"

    def __post_init__(self):
        if (self.placement == "around") != ("{}" in self.text):
            raise ValueError(
                f"{self.text!r} at {self.placement!r}: `{{}}` stands in texts that go around a prompt alone"
            )

    def into(self, prompt: str) -> str:
        """The same boundary for the same prompt, whatever the text."""
        if self.placement == "around":
            before, after = self.text.split("{}", 1)
            return f"{before}{prompt}{after}"
        if self.placement == "start":
            return f"{self.text} {prompt}"
        if self.placement == "end":
            return f"{prompt} {self.text}"
        head, tail = boundary(prompt)
        return " ".join(part for part in (head, self.text, tail) if part)

    def __str__(self) -> str:
        return self.text if self.placement == "around" else f"{self.text} ({self.placement})"


def boundary(prompt: str) -> tuple[str, str]:
    """The prompt, cut at the word boundary where a text at a random place goes in."""
    words = prompt.split(" ")
    at = random.Random(prompt).randrange(len(words) + 1)
    return " ".join(words[:at]), " ".join(words[at:])
