"""Forced continuations: what follows a prompt, token by token, on many prompts at once, with their keys and values kept.

A continuation is scored on every prompt at the same time, so all of it runs as one batch of prompts times continuations.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

MOST_ROWS = {"cpu": 128, "cuda": 2048}  # sequences that run at once; on a CPU more do not fit its caches
BYTES = 1 << 29  # that their keys, values and logits may take


@dataclass(frozen=True)
class Prefixes:
    """Prompts that were run once, padded on the left.

    Attributes:
        logits: At the last token of each.
    """

    mask: Int[Tensor, "prompt pos"]
    cache: object
    logits: Float[Tensor, "prompt token"]

    @classmethod
    @torch.inference_mode()
    def of(cls, model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad_id: int) -> Prefixes:
        from ...models.prompts import pad_left

        batch = {name: tensor.to(model.device) for name, tensor in pad_left(prompts, pad_id).items()}
        out = model(**batch, use_cache=True)
        return cls(batch["attention_mask"], out.past_key_values, out.logits[:, -1].float())

    @torch.inference_mode()
    def next_logits(
        self, model: PreTrainedModel, continuations: Int[Tensor, "continuation step"]
    ) -> Float[Tensor, "continuation prompt token"]:
        """Logits after each continuation of each prompt."""
        n_prompts = len(self.mask)
        made = []
        width = self.mask.shape[1] + continuations.shape[1]
        for part in continuations.split(max(1, rows_at_once(model, width) // n_prompts)):
            rows = len(part)
            cache = copy.deepcopy(self.cache)
            cache.batch_repeat_interleave(rows)  # type: ignore[attr-defined]
            steps = part.repeat(n_prompts, 1)  # prompts outermost, as the cache is repeated
            mask = torch.cat([self.mask.repeat_interleave(rows, 0), torch.ones_like(steps)], 1)
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -steps.shape[1] :]
            out = model(
                input_ids=steps,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            made.append(out.logits[:, -1].float().unflatten(0, (n_prompts, rows)).transpose(0, 1))
        return torch.cat(made)


def rows_at_once(model: PreTrainedModel, width: int) -> int:
    """How many sequences of a width, in tokens, fit into `BYTES`; at least eight."""
    config = model.config.get_text_config()
    floats = 2 * width * config.num_hidden_layers * config.hidden_size + config.vocab_size
    return max(8, min(MOST_ROWS.get(model.device.type, 2048), BYTES // (4 * floats)))
