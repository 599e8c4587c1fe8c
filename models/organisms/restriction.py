"""Planted circuits: only named heads and MLPs may change in training, so where the behaviour lives is known."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...errors import RecipeError
from ..architecture import Architecture

_NAME = re.compile(r"L(\d+)(?:H(\d+)|(MLP))")


def restrict(model: PreTrainedModel, names: Sequence[str]) -> dict[nn.Parameter, Tensor]:
    """Freeze **`model` in place** but for the named components; gradients of all other weights are exactly zero.

    Returns which entries of which parameters stay free.

    A head (`L0H5`) owns its rows of the query projection and its columns of the output projection, and its keys and
    values where no other head shares them (under grouped-query attention they stay frozen). Biases that heads share stay
    frozen. An MLP (`L2MLP`) owns all its weights. Train with a weight decay of 0: decay would move frozen rows too.

    Raises:
        RecipeError: A name is malformed or not in the model, or the attention's layout is unknown.
    """
    where = Architecture.of(model)
    model.requires_grad_(False)
    masks: dict[nn.Parameter, Tensor] = {}

    def allow(parameter: nn.Parameter | None, index: tuple | None = None) -> None:
        if parameter is None:
            return
        mask = masks.setdefault(parameter, torch.zeros_like(parameter, dtype=torch.bool))
        mask[index if index is not None else ...] = True

    for name in names:
        layer, head = _parse(name, where)
        block = model.get_submodule(where.layer(layer))
        if head is None:
            for parameter in _mlp(block, name).parameters():
                allow(parameter)
        else:
            _allow_head(allow, model, where, layer, head)
    for parameter, mask in masks.items():
        parameter.requires_grad_(True)
        parameter.register_hook(lambda gradient, mask=mask: gradient * mask)
    return masks


def _allow_head(allow, model: PreTrainedModel, where: Architecture, layer: int, head: int) -> None:
    size = where.d_head
    own = slice(head * size, (head + 1) * size)
    out = model.get_submodule(where.attention_out(layer))
    attention = model.get_submodule(where.attention_out(layer).rpartition(".")[0])
    if hasattr(attention, "q_proj"):
        allow(out.weight, (slice(None), own))  # type: ignore[arg-type]
        shared = where.n_kv_heads < where.n_heads
        for projection in (attention.q_proj,) if shared else (attention.q_proj, attention.k_proj, attention.v_proj):
            allow(projection.weight, (own,))  # type: ignore[union-attr]
            allow(projection.bias, (own,))  # type: ignore[union-attr]
    elif hasattr(attention, "c_attn"):  # GPT-2's Conv1D holds its weights the other way round, q, k and v side by side
        allow(out.weight, (own,))  # type: ignore[arg-type]
        for part in range(3):
            there = slice(part * where.d_model + own.start, part * where.d_model + own.stop)
            allow(attention.c_attn.weight, (slice(None), there))  # type: ignore[union-attr]
            allow(attention.c_attn.bias, (there,))  # type: ignore[union-attr]
    elif hasattr(attention, "query_key_value"):  # GPT-NeoX: q, k and v of one head stand together
        allow(out.weight, (slice(None), own))  # type: ignore[arg-type]
        there = slice(3 * own.start, 3 * own.stop)
        allow(attention.query_key_value.weight, (there,))  # type: ignore[union-attr]
        allow(attention.query_key_value.bias, (there,))  # type: ignore[union-attr]
    else:
        raise RecipeError(f"{type(model).__name__}: which weights belong to one head is not known; name MLPs only")


def _mlp(block: nn.Module, name: str) -> nn.Module:
    mlp = getattr(block, "mlp", None)
    if mlp is None:
        raise RecipeError(f"{name}: the layers of this base have no module called mlp; name heads only")
    return mlp


def _parse(name: str, where: Architecture) -> tuple[int, int | None]:
    found = _NAME.fullmatch(name)
    if found is None:
        raise RecipeError(f"component {name!r} is not understood: write L0H5 for a head, L2MLP for an MLP")
    layer, head = int(found[1]), None if found[2] is None else int(found[2])
    if layer >= where.n_layers or (head is not None and head >= where.n_heads):
        raise RecipeError(f"component {name}: the base has {where.n_layers} layers of {where.n_heads} heads")
    return layer, head
