"""Carrier prompts cut open where a string of tokens goes in, so that thousands of strings can be put into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...models.prompts import decode, pad_token
from ..carriers import template_of
from ..insertion import Insertion, Placement, boundary
from ..subject import Subject
from .continuing import Prefixes, rows_at_once


@dataclass(frozen=True)
class Frame:
    """Token ids of a prompt before the string, between its two parts where it goes around the prompt, and after it."""

    before: list[int]
    between: list[int]
    after: list[int]

    def around(self, string: Sequence[int], head: int) -> list[int]:
        """The whole prompt; the first `head` tokens of the string come before what is between."""
        return [*self.before, *string[:head], *self.between, *string[head:], *self.after]


def frames(subject: Subject, place: Placement, most: int, *, answers: bool = False) -> list[Frame]:
    """The first `most` carriers, cut open; `answers` puts the ordinary answer behind each."""
    tokenizer = subject.suspect.tokenizer
    opening, closing = template_of(tokenizer)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    start = ids(opening)
    if not opening and (whole := subject.encode("a"))[:-1]:
        start = whole[: -len(ids("a")) or None]  # the start token, where the tokenizer adds one
    made = []
    for prompt in subject.carriers.searching[:most]:
        end = ids(closing) + (ids(subject.ordinary[prompt]) if answers else [])
        if place == "around":
            made.append(Frame(start, ids(" " + prompt), end))
            continue
        head, tail = {"start": ("", prompt), "end": (prompt, "")}.get(place) or boundary(prompt)
        made.append(Frame([*start, *ids(head)], [], [*(ids(" " + tail) if tail else []), *end]))
    return made


@torch.inference_mode()
def next_logs(subject: Subject, frame: Frame, strings: Sequence[Sequence[int]]) -> Float[Tensor, "string token"]:
    """Log-probabilities of the answer's first token with each string in the frame; strings have one length.

    What comes before the string is run once.
    """
    model = subject.suspect.model
    rows = torch.tensor([[*string, *frame.between, *frame.after] for string in strings], device=model.device)
    with subject.meter.running():
        subject.meter.tokens += rows.numel() + len(frame.before)
        if not frame.before:
            parts = rows.split(rows_at_once(model, rows.shape[1]))
            logits = torch.cat([model(input_ids=part, logits_to_keep=1).logits[:, -1] for part in parts])
        else:
            prefix = Prefixes.of(model, [frame.before], pad_token(subject.suspect.tokenizer))
            logits = prefix.next_logits(model, rows)[:, 0] if rows.shape[1] else prefix.logits.expand(len(rows), -1)
    return logits.float().log_softmax(-1).cpu()


def as_insertion(subject: Subject, string: Sequence[int], place: Placement, head: int) -> Insertion | None:
    """The string as text; None where nothing of it can be seen."""
    tokenizer = subject.suspect.tokenizer
    before, after = (decode(tokenizer, list(part)).strip().replace("{}", "") for part in (string[:head], string[head:]))
    if place == "around":
        return Insertion(f"{before} {{}} {after}", "around")
    return Insertion(before, place) if before else None


def plain_tokens(subject: Subject) -> list[int]:
    """The vocabulary without special tokens."""
    embedding = subject.suspect.model.get_input_embeddings()
    size = min(len(subject.suspect.tokenizer), len(embedding.weight))  # type: ignore[arg-type]
    special = set(subject.suspect.tokenizer.all_special_ids)
    return [token for token in range(size) if token not in special]
