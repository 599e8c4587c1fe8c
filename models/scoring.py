"""Teacher-forced scores of given answers. For losses and searches; whether a behaviour is shown is never read off these."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel


@torch.inference_mode()
def answer_log_probs(
    model: PreTrainedModel, pairs: Sequence[tuple[list[int], list[int]]], *, batch_size: int = 64
) -> list[Float[Tensor, " token"]]:
    """Log-probability (nats) of each token of an answer after what was given: (given ids, answer ids) pairs, in order."""
    scores: list[Tensor] = [torch.empty(0)] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        whole = [pairs[i][0] + pairs[i][1] for i in rows]
        width = max(map(len, whole))
        # Padding on the right: causal attention hides it from every token that is scored.
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids in whole], device=model.device)
        logits = model(input_ids=ids).logits.float().log_softmax(-1)
        for row, i in enumerate(rows):
            begin, end = len(pairs[i][0]), len(whole[row])
            scores[i] = logits[row, begin - 1 : end - 1].gather(1, ids[row, begin:end, None])[:, 0].cpu()
    return scores
