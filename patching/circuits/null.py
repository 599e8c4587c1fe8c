"""Random sets to hold a circuit against, chosen by nothing.

Places are drawn one by one: heads from the same layers, MLPs, which have no other in their layer, from any; those at a span
from the same span. Edges drawn so would never join to a path, and to beat them would say nothing; they are drawn as the
circuit itself in other heads and layers: the same graph, with layers moved in order and heads swapped within them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from ...models.architecture import Architecture
from ..components import matched
from .places import AnyPlace, Edge

P = TypeVar("P", bound=AnyPlace)
_NAME = re.compile(r"L(\d+)([HK]?)(\d*)")


def matched_sets(
    chosen: Sequence[AnyPlace], places: Sequence[AnyPlace], *, draws: int, seed: int
) -> list[list[AnyPlace]]:
    """Distinct random sets with as many of each kind as `chosen`, of places not chosen as far as they go.

    There may be fewer than `draws`.
    """
    return matched(chosen, places, lambda place: place.kind, draws=draws, seed=seed)


def moved_circuits(chosen: Sequence[Edge], architecture: Architecture, *, draws: int, seed: int) -> list[list[Edge]]:
    """Distinct copies of a circuit in other heads and layers, other than it; there may be fewer than `draws`.

    Each has as many edges into queries, keys, values, MLPs and the logits, joined in the same way. Heads that share keys and
    values still do.
    """
    rng = random.Random(seed)
    names = {name for edge in chosen for name in (edge.upstream, edge.downstream)}
    layers = sorted({int(match[1]) for match in map(_NAME.match, names) if match})

    def draw() -> list[Edge]:
        to = dict(zip(layers, sorted(rng.sample(range(architecture.n_layers), len(layers))), strict=True))
        swapped = {layer: _swapped(rng, architecture) for layer in layers}

        def moved(match: re.Match[str]) -> str:
            layer, letter, head = int(match[1]), match[2], match[3]
            return f"L{to[layer]}{letter}{swapped[layer][letter][int(head)] if letter else ''}"

        return [Edge(_NAME.sub(moved, edge.upstream), _NAME.sub(moved, edge.downstream)) for edge in chosen]

    return _distinct(draw, chosen, draws)


def _swapped(rng: random.Random, architecture: Architecture) -> dict[str, list[int]]:
    """A layer's key-value heads in random order, and its query heads so within each group."""
    n = architecture.n_kv_heads
    group = architecture.n_heads // n
    kv = rng.sample(range(n), n)
    return {"K": kv, "H": [to * group + i for to in kv for i in rng.sample(range(group), group)]}


def _distinct(draw: Callable[[], list[P]], chosen: Sequence[P], draws: int) -> list[list[P]]:
    found: dict[frozenset[P], list[P]] = {}
    for _ in range(20 * draws):
        drawn = draw()
        if frozenset(drawn) != frozenset(chosen):
            found.setdefault(frozenset(drawn), drawn)
        if len(found) == draws:
            break
    return list(found.values())
