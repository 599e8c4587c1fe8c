"""What a signal hands on: candidates, and what it saw by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..insertion import Insertion


@dataclass(frozen=True)
class Candidate:
    """An insertion that released a text on the prompts searched on, and in what share of them more than without it."""

    insertion: Insertion
    behaviour: str
    gain: float


@dataclass(frozen=True)
class Signal:
    """Attributes:
    asks: The question that it answers, one sentence.
    score: What it saw without verification, where it sees more than candidates; higher is more suspicious.
    null: What that is held against within the model, with its figures.
    candidates: For verification, the most promising first.
    """

    name: str
    asks: str
    null: str
    candidates: tuple[Candidate, ...] = ()
    score: float | None = None
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
