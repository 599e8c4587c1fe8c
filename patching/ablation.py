"""What an ablation does, with its price: the behaviour by free generation, and everything else by loss and greedy answers.

Components are put at their mean over untriggered prompts and the model's own answers, one mean whatever the position: that
can be written into the weights afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import PromptError
from ..models.generation import Rate, emits, generate
from ..models.prompts import PromptSet, pad_left, pad_token
from ..models.suspect import Suspect
from .components import Component
from .interventions import Intervention, Resting


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
            self.resting = Resting(suspect, self.sequences)
        else:
            self.resting = Resting.of(suspect, means_from, max_new_tokens=max_new_tokens)

    def ablated(self, components: Sequence[Component]) -> PreTrainedModel:
        """A view of the suspect's model in which these always put out their mean; it generates like any model."""
        if not components:
            return self.suspect.model
        return Intervention(self.suspect, components, "mean", resting=self.resting).model

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
