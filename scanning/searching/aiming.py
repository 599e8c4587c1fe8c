"""Strings that make a model say a given text, by gradient (GCG, Zou et al. 2023, `arxiv.org/abs/2307.15043`, section 2.2)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...models.prompts import pad_left
from ..insertion import Insertion, Placement
from ..signals.behaviour import Target
from ..subject import Subject
from .continuing import rows_at_once
from .frames import as_insertion, frames, plain_tokens

PROMPTS = 2
SLOTS = 4  # tokens of a string
SHORTLIST = 32  # replacements by gradient for one slot


@dataclass(frozen=True)
class Aimed:
    """A string and how surely it makes the model say the text, beside the best of the random ones it was grown from.

    Attributes:
        score, at_random: Mean log-probability of a token of the text, nats.
    """

    insertion: Insertion | None
    score: float
    at_random: float


def aimed(subject: Subject, target: Target, place: Placement) -> Aimed:
    return _Search(subject, target, place).run()


class _Search:
    def __init__(self, subject: Subject, target: Target, place: Placement):
        self.subject = subject
        self.place: Placement = place
        self.model = subject.suspect.model
        self.frames = frames(subject, place, PROMPTS, answers=target.where == "end")
        self.aim = list(target.ids)
        self.rng = random.Random(f"{subject.seed} {place} {target.text}")
        self.allowed = plain_tokens(subject)
        self.head = SLOTS // 2 if place == "around" else SLOTS

    def run(self) -> Aimed:
        budget = self.subject.budget
        drawn = [[self.rng.choice(self.allowed) for _ in range(SLOTS)] for _ in range(budget.exchanged)]
        with self.subject.meter.running():
            score, best = max(zip(self._scores(drawn), drawn, strict=True))
            at_random = score
            for _ in range(budget.steps):
                shortlist = self._shortlist(best)
                tried = [self._exchanged(best, shortlist) for _ in range(budget.exchanged)]
                new, string = max(zip(self._scores(tried), tried, strict=True))
                if new > score:
                    score, best = new, string
        return Aimed(as_insertion(self.subject, best, self.place, self.head), score, at_random)

    def _exchanged(self, string: list[int], shortlist: list[list[int]]) -> list[int]:
        made = list(string)
        for slot in self.rng.sample(range(SLOTS), 1 + (self.rng.random() < 0.25)):
            made[slot] = self.rng.choice(shortlist[slot])
        return made

    def _rows(self, string: Sequence[int]) -> list[list[int]]:
        return [[*frame.around(string, self.head), *self.aim] for frame in self.frames]

    @torch.inference_mode()
    def _scores(self, strings: Sequence[Sequence[int]]) -> list[float]:
        rows = [row for string in strings for row in self._rows(string)]
        made: list[Tensor] = []
        at_once = rows_at_once(self.model, max(map(len, rows)))
        for begin in range(0, len(rows), at_once):
            batch = self._batch(rows[begin : begin + at_once])
            made.append(self._sureness(self.model(**batch, logits_to_keep=len(self.aim) + 1).logits))
        return torch.cat(made).unflatten(0, (len(strings), -1)).mean(1).tolist()

    def _sureness(self, logits: Float[Tensor, "row kept token"]) -> Float[Tensor, " row"]:
        logs = logits[:, -len(self.aim) - 1 : -1].float().log_softmax(-1)
        aim = torch.tensor(self.aim, device=logits.device).expand(len(logits), -1)
        return logs.gather(-1, aim[..., None])[..., 0].mean(-1)

    def _batch(self, rows: list[list[int]]) -> dict[str, Int[Tensor, "row pos"]]:
        self.subject.meter.tokens += sum(map(len, rows))
        return {name: tensor.to(self.model.device) for name, tensor in pad_left(rows, 0).items()}

    def _shortlist(self, string: list[int]) -> list[list[int]]:
        """For each slot the tokens that the gradient at its embedding favours."""
        batch = self._batch(self._rows(string))
        embed = cast(Any, self.model.get_input_embeddings())
        vectors = embed(batch["input_ids"]).detach().requires_grad_()
        inputs = {"inputs_embeds": vectors, **{k: v for k, v in batch.items() if k != "input_ids"}}
        with torch.enable_grad():
            score = self._sureness(self.model(**inputs, logits_to_keep=len(self.aim) + 1).logits).mean()
            (gradient,) = torch.autograd.grad(score, vectors)
        width = batch["input_ids"].shape[1]
        favoured: Float[Tensor, "slot token"] = torch.zeros(SLOTS, len(embed.weight), device=vectors.device)
        for i, (frame, row) in enumerate(zip(self.frames, self._rows(string), strict=True)):
            begin = width - len(row) + len(frame.before)
            at = [begin + k + (len(frame.between) if k >= self.head else 0) for k in range(SLOTS)]
            favoured += gradient[i, at] @ embed.weight.T
        allowed = favoured[:, self.allowed]
        best = allowed.topk(min(SHORTLIST, allowed.shape[1])).indices.tolist()
        return [[self.allowed[i] for i in row] for row in best]
