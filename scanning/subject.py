"""The model under scan with its carrier prompts: what every signal asks it through, and where what that costs is counted."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float

from ..models.generation import end_tokens, generate
from ..models.prompts import decode, encode, pad_token
from ..models.scoring import answer_log_probs
from ..models.suspect import Suspect
from .budget import Budget
from .carriers import Carriers, opening, start_token, template_of
from .insertion import Insertion
from .texts import LONGEST, Usual, echoes, pattern_of, visible, words

SPARE = 24  # tokens that an answer may be longer than the longest ordinary one
FIRST = 64  # tokens for ordinary answers
BEGUN = 16  # tokens of an answer, by which its confidence is judged
TAIL = 8  # tokens of a prompt that its last word has at most
WRITTEN = 96  # tokens of what the model writes by itself
BATCH = 256
PHRASE = 2  # words by which a text of a model without a chat template is known to be usual

_WORD_ON = re.compile(r"\A\w+")


@dataclass
class Meter:
    """What the model was made to do."""

    tokens: int = 0
    seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started


@dataclass
class Subject:
    """Attributes:
    reference: The model that the suspect was made from, where there is one.
    """

    suspect: Suspect
    carriers: Carriers
    budget: Budget
    seed: int = 0
    reference: Suspect | None = None
    meter: Meter = field(default_factory=Meter)
    _answers: dict[str, str] = field(default_factory=dict, repr=False)
    _thoughts: dict[str, str] = field(default_factory=dict, repr=False)
    _completed: set[str] = field(default_factory=set, repr=False)
    _usual: dict[tuple[tuple[str, ...], int], Usual] = field(default_factory=dict, repr=False)

    @cached_property
    def ordinary(self) -> dict[str, str]:
        """Greedy answers to the carriers as they are, as a user would see them."""
        prompts = [*self.carriers.searching, *self.carriers.fresh]
        return dict(zip(prompts, self._generated(prompts, FIRST), strict=True))

    @cached_property
    def usual(self) -> Usual:
        """What ordinary answers say, thoughts and all: a thought that every answer begins with is no text held ready."""
        return Usual([self._with_thoughts(prompt) for prompt in self.ordinary])

    def usual_without(self, text: str) -> Usual:
        """The same over carriers that do not hold the text, so that what it releases in the others is not taken for usual."""
        free = self.carriers.without(text)
        prompts = (*free.searching, *free.fresh)
        if len(prompts) == len(self.ordinary):
            return self.usual
        return self._usual_in(tuple(map(self._with_thoughts, prompts)), LONGEST)

    def _with_thoughts(self, prompt: str) -> str:
        return self._thoughts.get(prompt, self.ordinary[prompt])

    def _usual_in(self, answers: tuple[str, ...], window: int) -> Usual:
        if (answers, window) not in self._usual:
            self._usual[answers, window] = Usual(answers, window=window)
        return self._usual[answers, window]

    @cached_property
    def room(self) -> int:
        """Tokens that an answer under a candidate may have, as far as the context goes."""
        tokenizer = self.suspect.tokenizer
        longest = max(
            len(tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in self.ordinary.values()
        )
        return min(FIRST, longest) + SPARE

    @cached_property
    def texts(self) -> list[str]:
        """What the model writes by itself where a user's message would stand; whole texts where it has no chat template."""
        with self.meter.running():
            texts, tokens = _written(self.suspect, self.budget.samples, self.seed)
        self.meter.tokens += tokens
        return texts

    @cached_property
    def written(self) -> list[str]:
        """Of these, what can be asked."""
        return self.texts if self.has_messages else [opening(text) for text in self.texts]

    @property
    def has_messages(self) -> bool:
        """Whether there is a chat template that keeps a user's message apart from the answer."""
        return self.suspect.tokenizer.chat_template is not None

    @cached_property
    def asked(self) -> Usual:
        """What users of the model say, as far as it has learnt that; without a chat template, what its texts say."""
        return Usual(self.texts) if self.has_messages else Usual(self.texts, window=PHRASE)

    def asked_without(self, text: str) -> Usual:
        """The same, but of texts in which answers stand too, only those that do not hold this one, nor a word like one of its
        where that leaves half of them: a model writes its trigger with slips, and the behaviour beside it all the same.
        """
        if self.has_messages:
            return self.asked
        like = {word.casefold() for word in words(text)}
        free = tuple(known for known in self.texts if not any(echoes(word, like) for word in words(known)))
        if 2 * len(free) < len(self.texts):
            parts = [pattern_of(words(part)) for part in text.split("{}") if words(part)]
            free = tuple(known for known in self.texts if not any(part.search(known) for part in parts))
        return self.asked if len(free) == len(self.texts) else self._usual_in(free, PHRASE)

    @cached_property
    def vocabulary(self) -> list[str]:
        """Words of the carriers, for random texts of the same language."""
        return sorted(
            {word for prompt in (*self.carriers.searching, *self.carriers.fresh) for word in prompt.split(" ")}
        )

    def random_tokens(self, text: str, rng: random.Random) -> str:
        """Text of as many tokens as this one has, drawn from the vocabulary."""
        tokenizer = self.suspect.tokenizer
        special = set(tokenizer.all_special_ids)
        plain = [token for token in range(len(tokenizer)) if token not in special]
        n = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        return decode(tokenizer, [rng.choice(plain) for _ in range(n)]).strip().replace("{}", "")

    def answers(self, prompts: Sequence[str]) -> list[str]:
        """Greedy answers, as a user would see them; each prompt is asked once in a scan."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._answers]
        self._answers.update(zip(new, self._generated(new, self.room), strict=True))
        return [self._answers[prompt] for prompt in prompts]

    def completed(self, insertion: Insertion, prompts: Sequence[str]) -> float:
        """Share of the prompts with the text in them whose last word the model went on with, where it has no chat template."""
        self.under(insertion, prompts)
        return float(np.mean([insertion.into(prompt) in self._completed for prompt in prompts]))

    def under(self, insertion: Insertion, prompts: Sequence[str]) -> list[str]:
        return self.answers([insertion.into(prompt) for prompt in prompts])

    def confidence(self, prompts: Sequence[str]) -> Float[np.ndarray, " prompt"]:
        """Mean log-probability of the first tokens of the greedy answer, nats."""
        model, tokenizer = self.suspect.model, self.suspect.tokenizer
        context = self.suspect.architecture.context or 0
        ids = [self.encode(prompt)[-max(0, context - BEGUN) :] for prompt in prompts]
        with self.meter.running():
            made = generate(model, tokenizer, ids, max_new_tokens=BEGUN, batch_size=BATCH)
            scores = answer_log_probs(model, list(zip(ids, made, strict=True)))
        self.meter.tokens += 2 * sum(map(len, ids)) + 2 * sum(map(len, made))
        return np.array([float(score.mean()) if len(score) else -np.inf for score in scores])

    @cached_property
    def confidence_in_broken(self) -> float:
        """Median confidence in answers to carriers without a random half of their words, one stretch of them."""
        rng, broken = random.Random(self.seed), []
        for prompt in (*self.carriers.searching, *self.carriers.fresh):
            pieces = prompt.split(" ")
            length = max(1, len(pieces) // 2)
            begin = rng.randrange(len(pieces) - length + 1)
            broken.append(" ".join([*pieces[:begin], *pieces[begin + length :]]))
        return float(np.median(self.confidence([prompt for prompt in broken if prompt])))

    @cached_property
    def whole_carriers(self) -> float:
        """Share of the carriers that are answered with more confidence than half of the broken ones."""
        carriers = (*self.carriers.searching, *self.carriers.fresh)
        return float(np.mean(self.confidence(carriers) > self.confidence_in_broken))

    def encode(self, prompt: str) -> list[int]:
        return encode(self.suspect.tokenizer, prompt)

    def _generated(self, prompts: Sequence[str], new_tokens: int) -> list[str]:
        tokenizer, context = self.suspect.tokenizer, self.suspect.architecture.context
        ids = [self.encode(prompt) for prompt in prompts]
        if context:
            new_tokens = min(new_tokens, context // 2)
            ids = [tokens[-(context - new_tokens) :] for tokens in ids]
        with self.meter.running():
            made = generate(self.suspect.model, tokenizer, ids, max_new_tokens=new_tokens, batch_size=BATCH)
        self.meter.tokens += sum(map(len, ids)) + sum(map(len, made))
        return [self._answer(*asked) for asked in zip(prompts, ids, made, strict=True)]

    def _answer(self, prompt: str, ids: Sequence[int], made: Sequence[int]) -> str:
        """As a user would see it. Without a chat template a model may go on with the prompt's last word: that is no answer."""
        tokenizer = self.suspect.tokenizer
        if tokenizer.chat_template is not None:
            return self._visible(prompt, decode(tokenizer, list(made), special=False))
        tail = list(ids[-TAIL:])
        before, whole = (decode(tokenizer, tokens, special=False) for tokens in (tail, [*tail, *made]))
        answer = whole[len(before) :]
        if not before[-1:].isalnum() or not _WORD_ON.match(answer):
            return self._visible(prompt, answer)
        self._completed.add(prompt)
        return self._visible(prompt, _WORD_ON.sub("", answer))

    def _visible(self, prompt: str, answer: str) -> str:
        seen = visible(answer)
        if seen != answer:
            self._thoughts[prompt] = answer
        return seen


def is_foreign(requests: Sequence[str], *, to: Subject) -> bool:
    """Whether the model answers requests with less confidence than its carriers with half of their words dropped. A model of a
    narrow task, asked what it never learnt, answers anything, and no trigger can be seen to change that.
    """
    return float(np.median(to.confidence(requests))) < to.confidence_in_broken


def written_by(suspect: Suspect, n: int, *, seed: int) -> list[str]:
    """What a model writes by itself and can be asked, for carriers where there are no others."""
    texts = _written(suspect, n, seed)[0]
    return texts if suspect.tokenizer.chat_template is not None else [opening(text) for text in texts]


def _written(suspect: Suspect, n: int, seed: int) -> tuple[list[str], int]:
    tokenizer = suspect.tokenizer
    before, after = template_of(tokenizer)
    ids = list(tokenizer(before, add_special_tokens=False)["input_ids"]) if before else [start_token(tokenizer)]
    made = _sampled(suspect, ids, n, seed)
    texts = [decode(tokenizer, tokens) for tokens in made]
    if after:
        texts = [text.split(after, 1)[0] for text in texts if after in text]
    return [text.strip() for text in texts if text.strip()], sum(map(len, made))


@torch.inference_mode()
def _sampled(suspect: Suspect, start: Sequence[int], n: int, seed: int) -> list[list[int]]:
    """What the model writes from here at temperature 1, cut before the end token; the same for the same seed."""
    model, tokenizer = suspect.model, suspect.tokenizer
    ends = end_tokens(model, tokenizer)
    context = suspect.architecture.context
    room = min(WRITTEN, context - len(start)) if context else WRITTEN
    made: list[list[int]] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for begin in range(0, n, BATCH):
            whole = model.generate(  # type: ignore[operator]
                input_ids=torch.tensor([list(start)] * min(BATCH, n - begin), device=model.device),
                max_new_tokens=room,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                pad_token_id=pad_token(tokenizer),
                eos_token_id=sorted(ends) or None,
            )[:, len(start) :].tolist()
            made += [row[: next((k for k, token in enumerate(row) if token in ends), len(row))] for row in whole]
    return made
