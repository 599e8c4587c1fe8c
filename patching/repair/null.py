"""Random targets to hold a repair against: as many of each kind, chosen by nothing."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch

from ...models.architecture import Architecture
from ..circuits.places import Edge
from ..components import Component, all_components, matched, matched_random_sets
from ..interventions import Neurons, Subspace, Target
from ..paths import comes_after


def random_targets(targets: Sequence[Target], where: Architecture, *, draws: int, seed: int) -> list[list[Target]]:
    """As many of each kind at the same places.

    - Heads and MLPs: of the same layers. - Neurons: of the same layer, none of those chosen as far as others go.
    - Directions: of the same rank; where a covariance says how they are read, drawn with this covariance. - Edges: into the same readers, from heads of the same layers and from other MLPs.

    There may be fewer than `draws`, as of the other heads of one layer.
    """
    components = [target for target in targets if isinstance(target, Component)]
    edges = [target for target in targets if isinstance(target, Edge)]
    drawn: list[Sequence[Sequence[Target]]] = []
    if components:
        drawn.append(matched_random_sets(components, where, draws=draws, seed=seed))
    if edges:
        drawn.append(matched(edges, _possible(edges, where), _kind, draws=draws, seed=seed))
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    for target in targets:
        if isinstance(target, Subspace):
            drawn.append([[_directions(target, generator)] for _ in range(draws)])
        elif isinstance(target, Neurons):
            drawn.append([[_neurons(target, where, rng)] for _ in range(draws)])
    return [[target for part in parts for target in part] for parts in zip(*drawn, strict=False)]


def _directions(of: Subspace, generator: torch.Generator) -> Subspace:
    rank, width = of.reading.shape
    drawn = torch.randn(rank, width, generator=generator, dtype=torch.float64).to(of.reading)
    return replace(of, directions=drawn @ of.root.T, name="random")


def _neurons(of: Neurons, where: Architecture, rng: random.Random) -> Neurons:
    others = [i for i in range(where.d_mlp) if i not in of.index]
    n = min(len(of.index), len(others))
    return Neurons(of.layer, tuple(sorted(rng.sample(others, n) + rng.sample(of.index, len(of.index) - n))))


def _possible(edges: Sequence[Edge], where: Architecture) -> list[Edge]:
    """All edges into the readers of some edges; heads of a layer and its MLP are taken to run side by side."""
    senders = ["embedding", *map(str, all_components(where))]
    readers = dict.fromkeys(edge.downstream for edge in edges)
    more = [Edge(s, r) for r in readers for s in senders if comes_after(r, s, parallel=True)]
    return list(dict.fromkeys([*edges, *more]))


def _kind(edge: Edge) -> Hashable:
    (component,) = edge.components or (None,)
    sender = edge.upstream if component is None else "MLP" if component.head is None else component.layer
    return edge.downstream, sender
