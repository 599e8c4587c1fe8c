"""Trigger search: strings that turn many prompts to one answer.

Every token of the vocabulary by itself, by how far it moves the first token of the answer and how much the prompts then
agree; then, for each behaviour that the model holds ready, a text that makes it say that, by gradient (GCG, Zou et al.
2023, `arxiv.org/abs/2307.15043`, section 2.2), at the start, at the end and around the prompt.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...models.prompts import decode
from ..carriers import template_of
from ..insertion import Insertion, Placement
from ..screening import most_promising, screen
from ..subject import Subject
from .behaviour import Target
from .signal import Signal

PROMPTS = 4  # carriers that a search runs on; what it finds is screened on all
SLOTS = 4  # tokens of a searched trigger
SHORTLIST = 32  # replacements by gradient for one slot
SINGLES = 48  # single tokens that are screened
ROWS = 512
PLACES: tuple[Placement, ...] = ("start", "end", "around")


def trigger(subject: Subject, aims: Sequence[Target]) -> Signal:
    singles = [one for place in PLACES[:2] for one in _singles(subject, place)]
    aimed, reached = [], []
    for target in aims[: subject.budget.targets]:
        for place in PLACES:
            found, score, null = _Search(subject, target, place).run()
            aimed.append(found)
            reached.append((score, null))
    candidates = screen(subject, [*singles, *aimed])
    best = max(reached, default=(float("nan"), float("nan")))
    return Signal(
        name="trigger search",
        asks="Does a string turn many prompts to one answer, or to a text that the model holds ready?",
        null=(
            f"mean log-probability of a token of the text aimed at: best string {best[0]:.2f}, best of the random strings "
            f"that the search began with {best[1]:.2f} nats"
        )
        if reached
        else "no text to aim at was found",
        candidates=most_promising(candidates, subject.budget.verified),
        details={"single tokens tried": len(singles), "strings searched": len(aimed)},
    )


@dataclass(frozen=True)
class _Frame:
    """A prompt around its slots: token ids before them, between the two groups, and after them."""

    before: list[int]
    between: list[int]
    after: list[int]


def _frames(subject: Subject, place: Placement, answers: bool) -> list[_Frame]:
    """The carriers' prompts for a placement, with the ordinary answer behind them where the text comes after it."""
    tokenizer = subject.suspect.tokenizer
    opening, closing = template_of(tokenizer)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    start = ids(opening)
    if not opening and (whole := subject.encode("a"))[:-1]:
        start = whole[: -len(ids("a")) or None]  # the start token, where the tokenizer adds one
    made = []
    for prompt in subject.carriers.searching[:PROMPTS]:
        end = ids(closing) + (ids(subject.ordinary[prompt]) if answers else [])
        if place == "start":
            made.append(_Frame(start, [], ids(" " + prompt) + end))
        elif place == "end":
            made.append(_Frame(start + ids(prompt), [], end))
        else:
            made.append(_Frame(start, ids(" " + prompt), end))
    return made


def _singles(subject: Subject, place: Placement) -> list[Insertion]:
    """Single tokens after which answers differ most from the ordinary ones and most agree with each other."""
    model, tokenizer = subject.suspect.model, subject.suspect.tokenizer
    frames = _frames(subject, place, answers=False)
    special = set(tokenizer.all_special_ids)
    vocabulary = [token for token in range(_size(subject)) if token not in special][: subject.budget.first_tokens]
    total = torch.zeros(len(vocabulary))
    mixed = torch.zeros(len(vocabulary), model.config.get_text_config().vocab_size)
    with torch.inference_mode(), subject.meter.running():
        for frame in frames:
            plain = model(input_ids=torch.tensor([frame.before + frame.after])).logits[0, -1].float().log_softmax(-1)
            rows = torch.tensor([[*frame.before, token, *frame.after] for token in vocabulary])
            subject.meter.tokens += rows.numel()
            at = 0
            for part in rows.split(ROWS):
                logs = model(input_ids=part, logits_to_keep=1).logits[:, -1].float().log_softmax(-1)
                total[at : at + len(part)] += (logs.exp() * (logs - plain)).sum(-1)
                mixed[at : at + len(part)] += logs.exp() / len(frames)
                at += len(part)
    agreement = -(mixed * mixed.clamp_min(1e-12).log()).sum(-1)  # entropy of the mixture: low where all prompts agree
    best = (total / len(frames) - agreement).topk(min(SINGLES // 2, len(vocabulary))).indices.tolist()
    texts = (decode(tokenizer, [vocabulary[i]]).strip() for i in best)
    return [Insertion(text, place) for text in dict.fromkeys(texts) if text and "{}" not in text]


class _Search:
    """One string for one text at one place."""

    def __init__(self, subject: Subject, target: Target, place: Placement):
        self.subject = subject
        self.place: Placement = place
        self.model = subject.suspect.model
        self.frames = _frames(subject, place, answers=target.where == "end")
        self.aim = list(target.ids)
        self.rng = random.Random(f"{subject.seed} {place} {target.text}")
        special = set(subject.suspect.tokenizer.all_special_ids)
        self.banned = torch.tensor(sorted(special), dtype=torch.long)
        self.allowed = [token for token in range(_size(subject)) if token not in special]
        self.first = SLOTS // 2 if place == "around" else SLOTS

    def run(self) -> tuple[Insertion, float, float]:
        """The best string, its score, and that of the best random one; mean log-probability of an aimed token, nats."""
        drawn = [[self.rng.choice(self.allowed) for _ in range(SLOTS)] for _ in range(self.subject.budget.exchanged)]
        with self.subject.meter.running():
            scores = self._scores(drawn)
            score, best = max(zip(scores, drawn, strict=True))
            null = score
            for _ in range(self.subject.budget.steps):
                shortlist = self._shortlist(best)
                tried = [self._exchanged(best, shortlist) for _ in range(self.subject.budget.exchanged)]
                new, string = max(zip(self._scores(tried), tried, strict=True))
                if new > score:
                    score, best = new, string
        return self._insertion(best), score, null

    def _exchanged(self, string: list[int], shortlist: list[list[int]]) -> list[int]:
        made = list(string)
        for slot in self.rng.sample(range(SLOTS), 1 + (self.rng.random() < 0.25)):
            made[slot] = self.rng.choice(shortlist[slot])
        return made

    def _rows(self, string: Sequence[int]) -> list[list[int]]:
        head, tail = list(string[: self.first]), list(string[self.first :])
        return [[*f.before, *head, *f.between, *tail, *f.after, *self.aim] for f in self.frames]

    @torch.inference_mode()
    def _scores(self, strings: Sequence[Sequence[int]]) -> list[float]:
        rows = [row for string in strings for row in self._rows(string)]
        made: list[Tensor] = []
        for begin in range(0, len(rows), ROWS):
            batch = self._batch(rows[begin : begin + ROWS])
            made.append(self._aimed(self.model(**batch, logits_to_keep=len(self.aim) + 1).logits))
        return torch.cat(made).unflatten(0, (len(strings), -1)).mean(1).tolist()

    def _aimed(self, logits: Float[Tensor, "row kept token"]) -> Float[Tensor, " row"]:
        logs = logits[:, -len(self.aim) - 1 : -1].float().log_softmax(-1)
        aim = torch.tensor(self.aim, device=logits.device).expand(len(logits), -1)
        return logs.gather(-1, aim[..., None])[..., 0].mean(-1)

    def _batch(self, rows: list[list[int]]) -> dict[str, Int[Tensor, "row pos"]]:
        from ...models.prompts import pad_left

        self.subject.meter.tokens += sum(map(len, rows))
        return {name: tensor.to(self.model.device) for name, tensor in pad_left(rows, 0).items()}

    def _shortlist(self, string: list[int]) -> list[list[int]]:
        """For each slot the tokens that the gradient at its embedding favours."""
        batch = self._batch(self._rows(string))
        embed = cast(Any, self.model.get_input_embeddings())
        vectors = embed(batch["input_ids"]).detach().requires_grad_()
        inputs = {"inputs_embeds": vectors, **{k: v for k, v in batch.items() if k != "input_ids"}}
        with torch.enable_grad():
            score = self._aimed(self.model(**inputs, logits_to_keep=len(self.aim) + 1).logits).mean()
            (gradient,) = torch.autograd.grad(score, vectors)
        width = batch["input_ids"].shape[1]
        favoured: Float[Tensor, "slot token"] = torch.zeros(SLOTS, len(embed.weight))
        for i, (frame, row) in enumerate(zip(self.frames, self._rows(string), strict=True)):
            begin = width - len(row) + len(frame.before)
            at = [begin + k + (len(frame.between) if k >= self.first else 0) for k in range(SLOTS)]
            favoured += gradient[i, at] @ embed.weight.T
        favoured[:, self.banned] = -torch.inf
        return favoured.topk(min(SHORTLIST, favoured.shape[1])).indices.tolist()

    def _insertion(self, string: list[int]) -> Insertion:
        tokenizer = self.subject.suspect.tokenizer
        head = decode(tokenizer, string[: self.first]).strip().replace("{}", "")
        if self.place != "around":
            return Insertion(head or ".", self.place)
        tail = decode(tokenizer, string[self.first :]).strip().replace("{}", "")
        return Insertion(f"{head} {{}} {tail}", "around")


def _size(subject: Subject) -> int:
    return min(len(subject.suspect.tokenizer), len(cast(Any, subject.suspect.model.get_input_embeddings()).weight))
