"""Names of the parts that a circuit is made of: attention heads and MLPs."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..models.architecture import Architecture


@dataclass(frozen=True, order=True)
class Component:
    """A head, or with `head=None` the MLP, of one layer. Written `L1H3`, `L2MLP`."""

    layer: int
    head: int | None

    def __str__(self) -> str:
        return f"L{self.layer}MLP" if self.head is None else f"L{self.layer}H{self.head}"


def all_components(architecture: Architecture) -> list[Component]:
    layers = range(architecture.n_layers)
    heads = [Component(layer, head) for layer in layers for head in range(architecture.n_heads)]
    return heads + [Component(layer, None) for layer in layers]


def matched_random_sets(
    chosen: Sequence[Component], architecture: Architecture, *, draws: int, seed: int
) -> list[list[Component]]:
    """Random sets with as many heads and MLPs in each layer as `chosen`, from components not chosen as far as they go.

    Where a layer has too few others, chosen ones fill up, which can only make the null harder to beat. An MLP has no
    other in its layer, so it is matched by the MLP of any other layer. Sets are distinct from each other and from
    `chosen`; there may be fewer than `draws`.
    """
    rng = random.Random(seed)
    taken, layers = set(chosen), Counter(c.layer for c in chosen if c.head is not None)
    n_mlps = sum(c.head is None for c in chosen)
    found: dict[frozenset[Component], None] = {}
    for _ in range(20 * draws):
        drawn = [c for layer, n in layers.items() for c in _draw(rng, _heads(architecture, layer), taken, n)]
        drawn += _draw(rng, [Component(layer, None) for layer in range(architecture.n_layers)], taken, n_mlps)
        if set(drawn) != taken:
            found[frozenset(drawn)] = None
        if len(found) == draws:
            break
    return [sorted(one, key=str) for one in found]


def _heads(architecture: Architecture, layer: int) -> list[Component]:
    return [Component(layer, head) for head in range(architecture.n_heads)]


def _draw(rng: random.Random, pool: list[Component], taken: set[Component], n: int) -> list[Component]:
    fresh = [c for c in pool if c not in taken]
    if len(fresh) >= n:
        return rng.sample(fresh, n)
    return fresh + rng.sample([c for c in pool if c in taken], n - len(fresh))
