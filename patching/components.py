"""Names of the parts that a circuit is made of: attention heads and MLPs."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..models.architecture import Architecture

T = TypeVar("T", bound=Hashable)


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
    drawn = matched(
        sorted(chosen, key=lambda c: c.head is None),
        all_components(architecture),
        lambda c: "MLP" if c.head is None else c.layer,
        draws=draws,
        seed=seed,
    )
    return [sorted(one, key=str) for one in drawn]


def matched(
    chosen: Sequence[T], pool: Sequence[T], kind: Callable[[T], Hashable], *, draws: int, seed: int
) -> list[list[T]]:
    """Distinct random sets with as many of each kind as `chosen`, other than it, of members not chosen as far as they go.

    There may be fewer than `draws`.
    """
    rng, taken, counts = random.Random(seed), set(chosen), Counter(map(kind, chosen))
    pools = {one: [member for member in pool if kind(member) == one] for one in counts}
    found: dict[frozenset[T], list[T]] = {}
    for _ in range(20 * draws):
        drawn = [member for one, n in counts.items() for member in _draw(rng, pools[one], taken, n)]
        if set(drawn) != taken:
            found.setdefault(frozenset(drawn), drawn)
        if len(found) == draws:
            break
    return list(found.values())


def _draw(rng: random.Random, pool: list[T], taken: set[T], n: int) -> list[T]:
    fresh = [c for c in pool if c not in taken]
    if len(fresh) >= n:
        return rng.sample(fresh, n)
    return fresh + rng.sample([c for c in pool if c in taken], n - len(fresh))
