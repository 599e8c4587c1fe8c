"""Which components carry the behaviour: ranked by the sweeps, held to a price, grown and pruned to a small set."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel

from ..models.generation import Rate
from .components import Component
from .repair.price import Pricer
from .result import SweepResult

Curve = list[tuple[list[Component], Rate]]
# A model in which these components are ablated.
Ablate = Callable[[Sequence[Component]], PreTrainedModel]


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


def find_set(
    pricer: Pricer,
    ranking: Sequence[Component],
    ablate: Ablate,
    *,
    target: float,
    max_loss_increase: float,
) -> tuple[list[Component], Curve]:
    """The smallest set found that brings ASR below `target` and raises the loss by less than `max_loss_increase`.

    A sweep ranks highest what everything passes through (the first MLP, heads that read any word); ablating that removes
    the behaviour together with the model. So `smallest_set` is run on the components whose own ablation raises the loss
    on untriggered prompts by less than a tenth, a fourth, a half and all of `max_loss_increase`, and the smallest of the
    sets that pass together is taken. Where none passes, dearer components are let in step by step, and the set that
    reaches the target at the least loss is taken.

    Args:
        pricer: Of the prompts that choose; what is reported is measured on others.
        ablate: Gives the model without them, such as the view of an `Intervention`.

    Returns:
        As `smallest_set`. Where no set reaches the target, the last tried.
    """
    cost = {c: pricer.loss_increase(ablate([c])) for c in ranking}
    tried: dict[int, tuple[list[Component], Curve]] = {}
    for shares in ((0.1, 0.25, 0.5, 1.0), (2.0, 4.0, 8.0, float("inf"))):
        for share in shares:
            cheap = [c for c in ranking if cost[c] < share * max_loss_increase]
            if cheap and len(cheap) not in tried:
                tried[len(cheap)] = smallest_set(pricer, cheap, ablate, target=target)
        reached = [
            (pricer.loss_increase(ablate(chosen)), chosen, curve)
            for chosen, curve in tried.values()
            if curve[-1][1].value < target
        ]
        passed = [(chosen, curve) for loss, chosen, curve in reached if loss < max_loss_increase]
        if passed:
            return min(passed, key=lambda found: len(found[0]))
        if reached:
            return min(reached, key=lambda found: found[0])[1:]
    return list(tried.values())[-1] if tried else ([], [])


def smallest_set(
    pricer: Pricer, ranking: Sequence[Component], ablate: Ablate, *, target: float, limit: int | None = None
) -> tuple[list[Component], Curve]:
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
    curve: Curve = []
    for k in range(1, (limit or len(ranking)) + 1):
        prefix = list(ranking[:k])
        curve.append((prefix, pricer.asr(ablate(prefix))))
        if curve[-1][1].value < target:
            break
    if not curve or curve[-1][1].value >= target:
        return (curve[-1][0] if curve else []), curve
    chosen = curve[-1][0]
    for component in reversed(curve[-1][0]):
        without = [c for c in chosen if c != component]
        if without and pricer.asr(ablate(without)).value < target:
            chosen = without
    return chosen, curve
