"""Random targets to hold a repair against: as many of each kind, chosen by nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...models.architecture import Architecture
from ..components import Component, matched_random_sets
from ..interventions import Subspace, Target


def random_targets(targets: Sequence[Target], where: Architecture, *, draws: int, seed: int) -> list[list[Target]]:
    """Sets with as many heads and MLPs of the same layers, and random directions of the same rank at the same place.

    There may be fewer than `draws`, as of the other heads of one layer. Of neurons and edges there are none.
    """
    components = [target for target in targets if isinstance(target, Component)]
    subspaces = [target for target in targets if isinstance(target, Subspace)]
    if not components and not subspaces:
        return []
    sets = matched_random_sets(components, where, draws=draws, seed=seed) if components else [[]] * draws
    generator = torch.Generator().manual_seed(seed)

    def directions(of: Subspace) -> Subspace:
        return Subspace(torch.randn(len(of.basis), where.d_model, generator=generator), of.after, "random")

    return [[*drawn, *map(directions, subspaces)] for drawn in sets]
