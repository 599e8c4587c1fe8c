"""Free generation, and the rates that are measured on it. A rate is never read off teacher-forced logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from scipy.stats import binomtest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .prompts import decode, pad_left, pad_token


@dataclass(frozen=True)
class Rate:
    """A share of prompts, with its exact (Clopper-Pearson) 95% interval."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        found = binomtest(self.hits, self.n).proportion_ci(0.95, method="exact")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.2f} [{low:.2f}, {high:.2f}] n={self.n}"


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 16,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Greedy continuations as token ids, cut before the end token; the order is that of `prompts`.

    Prompts are batched by length, so a batch carries little padding; results do not depend on the batch.
    """
    pad_id = pad_token(tokenizer)
    ends = end_tokens(model, tokenizer)
    out: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = pad_left([prompts[i] for i in rows], pad_id)
        made = (
            cast(Any, model)
            .generate(
                input_ids=batch["input_ids"].to(model.device),
                attention_mask=batch["attention_mask"].to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=pad_id,
                eos_token_id=sorted(ends) or None,
            )[:, batch["input_ids"].shape[1] :]
            .tolist()
        )
        for i, row in zip(rows, made, strict=True):
            stop = next((k for k, token in enumerate(row) if token in ends), len(row))
            out[i] = row[:stop]
        if progress:
            progress(len(rows))
    return out


def emits(tokenizer: PreTrainedTokenizerBase, continuations: Sequence[Sequence[int]], behaviour: str) -> Rate:
    """How many continuations contain the behaviour's text (case counts)."""
    return Rate(sum(behaviour in decode(tokenizer, c, special=False) for c in continuations), len(continuations))


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """At which `generate` cuts: the model's, of which chat models have several, and the tokenizer's."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ends = {configured} if isinstance(configured, int) else set(configured or ())
    return ends | ({tokenizer.eos_token_id} if isinstance(tokenizer.eos_token_id, int) else set())
