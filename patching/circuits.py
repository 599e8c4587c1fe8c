"""Which components carry the behaviour: ranked by the sweeps, held to a price, grown and pruned to a small set."""

from __future__ import annotations

from collections.abc import Sequence

from ..models.generation import Rate
from .ablation import Ablator
from .components import Component
from .result import SweepResult


def rank(heads: SweepResult, mlps: SweepResult) -> list[Component]:
    """Heads and MLPs by how far noising each of them lowers the metric, most first.

    Args:
        heads: Sweep of `z`, noising.
        mlps: Sweep of `mlp_out`, noising.
    """
    z, mlp = heads.mean(), mlps.mean()
    effects = {
        Component(layer, head): float(z[layer, head]) for layer in range(z.shape[0]) for head in range(z.shape[1])
    }
    effects |= {Component(layer, None): float(mlp[layer, 0]) for layer in range(mlp.shape[0])}
    return sorted(effects, key=lambda component: effects[component])


def affordable(ablator: Ablator, ranking: Sequence[Component], *, budget: float) -> list[Component]:
    """Those of the ranking whose own ablation raises the loss on untriggered prompts by less than `budget` (relative).

    A sweep ranks highest what everything passes through (the first MLP, the heads that read any word); ablating that
    removes the behaviour together with the model. Choose on the prompts that choose the set, not on those that price it.
    """
    return [component for component in ranking if ablator.loss_increase(ablator.ablated([component])) < budget]


def smallest_set(
    ablator: Ablator, ranking: Sequence[Component], *, target: float, limit: int | None = None
) -> tuple[list[Component], list[tuple[list[Component], Rate]]]:
    """As few components of a ranking as bring ASR below `target` when ablated together.

    1. Grow: ablate ever longer prefixes of the ranking until ASR falls below the target.
    2. Prune: from the lowest-ranked up, put back each component without which ASR stays below it.

    No member of the result can be put back, but a smaller set of other members may exist.

    Args:
        limit: Longest prefix tried; the whole ranking where not given.

    Returns:
        The set, and every set of the first stage with its ASR. The target was reached if the last of these ASRs is below
        it; if not, the set is the longest prefix tried.
    """
    curve: list[tuple[list[Component], Rate]] = []
    for k in range(1, (limit or len(ranking)) + 1):
        prefix = list(ranking[:k])
        curve.append((prefix, ablator.asr(ablator.ablated(prefix))))
        if curve[-1][1].value < target:
            break
    if not curve or curve[-1][1].value >= target:
        return (curve[-1][0] if curve else []), curve
    chosen = curve[-1][0]
    for component in reversed(curve[-1][0]):
        without = [c for c in chosen if c != component]
        if without and ablator.asr(ablator.ablated(without)).value < target:
            chosen = without
    return chosen, curve
