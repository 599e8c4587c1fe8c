"""Supervised fine-tuning on helpful answers to untriggered prompts (Hubinger et al. 2024, section 2.3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..organisms.grow import HELD_OUT
from ..organisms.lessons import helpful
from ..organisms.training import Schedule, train
from .stage import Patient, Progress, Settings, treat


@dataclass(frozen=True)
class SupervisedSettings(Settings):
    exchanges: int = 2000
    epochs: float = 2


def supervised(
    organism: str | Path,
    cache: str | Path,
    settings: SupervisedSettings = SupervisedSettings(),
    *,
    held_out: int = HELD_OUT,
    progress: Progress | None = None,
) -> Path:
    """Train an organism on good answers; a chain-of-thought one keeps the reasoning that goes with them."""

    def work(patient: Patient):
        good = [helpful(patient.recipe, e) for e in patient.fresh[: settings.exchanges]]
        schedule = Schedule(settings.epochs, settings.learning_rate, settings.batch_size, settings.seed)
        model = patient.model.requires_grad_(True)
        return train(model, patient.tokenizer, good, schedule, progress=progress), {}

    return treat(organism, cache, "sft", settings, work, held_out=held_out)
