"""Mean ablation at run time, and its price.

1. `mean_activations` takes each component's mean output over untriggered prompts and the model's own answers.
2. `ablate` gives a view of the model in which chosen components always put out their mean.
3. `Ablator.price` measures what that does to the behaviour (free generation) and to everything else (loss, greedy answers).

One mean per component, whatever the position: position-wise means need prompts that align, and cannot be written into
the weights afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import PromptError
from ..models.generation import Rate, emits, generate
from ..models.prompts import PromptSet, pad_left, pad_token
from ..models.suspect import Suspect
from ..models.view import change_input, change_output, view, watch_input, watch_output
from .components import Component, all_components


def mean_activations(
    suspect: Suspect, sequences: Sequence[Sequence[int]], *, batch_size: int = 64
) -> dict[Component, Float[Tensor, "d"]]:
    """Mean `z` of every head (`[d_head]`) and mean `mlp_out` of every MLP (`[d_model]`) over all tokens."""
    where = suspect.architecture
    sums: dict[str, Tensor] = {}
    captured: dict[str, Tensor] = {}
    names = [where.attention_out(i) for i in range(where.n_layers)], [where.mlp_out(i) for i in range(where.n_layers)]
    replace = {name: watch_input(partial(captured.__setitem__, name)) for name in names[0]}
    replace |= {name: watch_output(partial(captured.__setitem__, name)) for name in names[1]}
    watched = view(suspect.model, replace)
    tokens = 0
    with torch.inference_mode():
        for batch in _batches(suspect, sequences, batch_size):
            watched(**batch, use_cache=False, logits_to_keep=1)
            mask = batch["attention_mask"].bool()
            tokens += int(mask.sum())
            for name, value in captured.items():
                sums[name] = sums.get(name, 0) + value[mask].double().sum(0)  # type: ignore[assignment]
    means = {name: (total / tokens).to(suspect.model.dtype) for name, total in sums.items()}
    out = {}
    for component in all_components(where):
        if component.head is None:
            out[component] = means[where.mlp_out(component.layer)]
        else:
            z = rearrange(means[where.attention_out(component.layer)], "(head d) -> head d", head=where.n_heads)
            out[component] = z[component.head]
    return out


def ablate(
    suspect: Suspect, components: Sequence[Component], means: Mapping[Component, Float[Tensor, "d"]]
) -> PreTrainedModel:
    """A view of the suspect's model whose `components` always put out their mean; it generates like any model."""
    where = suspect.architecture
    replace = {}
    for layer in range(where.n_layers):
        heads = {c.head: means[c] for c in components if c.layer == layer and c.head is not None}
        if heads:
            replace[where.attention_out(layer)] = change_input(partial(_with_heads, fixed=heads, d_head=where.d_head))
        if Component(layer, None) in components:
            mean = means[Component(layer, None)]
            replace[where.mlp_out(layer)] = change_output(mean.expand_as)
    return view(suspect.model, replace)


@dataclass(frozen=True)
class Price:
    """What an ablation does, with what it costs.

    Attributes:
        asr, false_alarm: The behaviour on triggered and untriggered prompts, by free generation.
        loss_before, loss_after: Nats per token over untriggered prompts and the unablated model's greedy answers.
        loss_increase: Relative (0.01 is 1%); `loss_interval` is its 95% interval, paired over prompts.
        agreement: Untriggered prompts whose greedy answer stays the same, token for token.
    """

    asr: Rate
    false_alarm: Rate
    loss_before: float
    loss_after: float
    loss_interval: tuple[float, float]
    agreement: Rate

    @property
    def loss_increase(self) -> float:
        return self.loss_after / self.loss_before - 1


class Ablator:
    """Ablates components of one suspect and prices it; what the unablated model does is computed once.

    Args:
        prompts: What is measured on; triggered and untriggered ones.
        behaviour: Text whose emission is the attack's success.
        means_from: Prompts whose untriggered ones give the means; `prompts` where not given.

    Raises:
        PromptError: Triggered or untriggered prompts are missing, or one leaves no room to answer.
    """

    def __init__(
        self,
        suspect: Suspect,
        prompts: PromptSet,
        behaviour: str,
        *,
        max_new_tokens: int = 24,
        means_from: PromptSet | None = None,
    ):
        self.suspect, self.behaviour, self.max_new_tokens = suspect, behaviour, max_new_tokens
        self.triggered = self._tokens(prompts.of_kind("triggered"))
        self.untriggered = self._tokens(prompts.of_kind("untriggered"))
        if not self.triggered or not self.untriggered:
            raise PromptError("an ablation is priced on triggered and untriggered prompts: both must be there")
        self.answers = self._answers(suspect.model, self.untriggered)
        self.sequences = _joined(self.untriggered, self.answers)
        self._losses_before = self._losses(suspect.model)
        if means_from is None:
            self.means = mean_activations(suspect, self.sequences)
        else:
            others = self._tokens(means_from.of_kind("untriggered"))
            self.means = mean_activations(suspect, _joined(others, self._answers(suspect.model, others)))

    def ablated(self, components: Sequence[Component]) -> PreTrainedModel:
        return ablate(self.suspect, components, self.means)

    def asr(self, model: PreTrainedModel) -> Rate:
        return emits(self.suspect.tokenizer, self._answers(model, self.triggered), self.behaviour)

    def loss_increase(self, model: PreTrainedModel) -> float:
        """Relative, on untriggered prompts and the unablated model's own answers."""
        return float(self._losses(model)[:, 0].sum() / self._losses_before[:, 0].sum() - 1)

    def price(self, components: Sequence[Component], *, seed: int = 0, resamples: int = 1000) -> Price:
        model = self.ablated(components)
        answers = self._answers(model, self.untriggered)
        before, after = self._losses_before, self._losses(model)
        rng = np.random.default_rng(seed)
        drawn = rng.integers(len(before), size=(resamples, len(before)))
        increases = after[drawn, 0].sum(1) / before[drawn, 0].sum(1) - 1
        low, high = np.quantile(increases, (0.025, 0.975))
        return Price(
            asr=self.asr(model),
            false_alarm=emits(self.suspect.tokenizer, answers, self.behaviour),
            loss_before=float(before[:, 0].sum() / before[:, 1].sum()),
            loss_after=float(after[:, 0].sum() / after[:, 1].sum()),
            loss_interval=(float(low), float(high)),
            agreement=Rate(sum(a == b for a, b in zip(answers, self.answers, strict=True)), len(answers)),
        )

    def _tokens(self, prompts: PromptSet) -> list[list[int]]:
        context = self.suspect.architecture.context
        return prompts.tokenize(self.suspect.tokenizer, room=context and context - self.max_new_tokens)

    def _answers(self, model: PreTrainedModel, prompts: list[list[int]]) -> list[list[int]]:
        return generate(model, self.suspect.tokenizer, prompts, max_new_tokens=self.max_new_tokens)

    def _losses(self, model: PreTrainedModel) -> np.ndarray:
        """Summed loss and number of predicted tokens of each sequence, `[prompt, 2]`."""
        rows = []
        with torch.inference_mode():
            for batch in _batches(self.suspect, self.sequences, 64):
                logits = model(**batch, use_cache=False).logits[:, :-1]
                target, mask = batch["input_ids"][:, 1:], batch["attention_mask"][:, :-1].float()
                loss = nn.functional.cross_entropy(logits.float().transpose(1, 2), target, reduction="none")
                rows.append(torch.stack([(loss * mask).sum(1), mask.sum(1)], dim=1))
        return torch.cat(rows).double().cpu().numpy()


def _joined(prompts: list[list[int]], answers: list[list[int]]) -> list[list[int]]:
    return [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]


def _batches(suspect: Suspect, sequences: Sequence[Sequence[int]], size: int):
    pad = pad_token(suspect.tokenizer)
    for start in range(0, len(sequences), size):
        batch = pad_left(sequences[start : start + size], pad)
        yield {name: value.to(suspect.model.device) for name, value in batch.items()}


def _with_heads(z: Tensor, fixed: Mapping[int, Tensor], d_head: int) -> Tensor:
    """`z` with some heads put at their values."""
    out = z.clone()
    for head, value in fixed.items():
        out[..., head * d_head : (head + 1) * d_head] = value
    return out
