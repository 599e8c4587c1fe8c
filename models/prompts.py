"""Prompt sets: triggered, untriggered and near-miss versions of the same underlying prompts.

The `group` names the underlying prompt. It is the unit of every split, so a prompt and its triggered copy can never
stand on both sides of one: what is fitted or chosen and what is reported are handed around together, as a `Split`, which
refuses to be made otherwise.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import PromptError
from .chat_template import rendered
from .lines import Lines, read_lines

Kind = Literal["triggered", "untriggered", "near-miss"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_OPTIONAL = ("family", "prefill")


@dataclass(frozen=True, slots=True)  # slots: sets hold millions of them
class Prompt:
    """One prompt as the user would type it, before any chat template.

    Attributes:
        kind: What it holds of the trigger.
        group: Names the underlying prompt.
        family: Names the kind of task, where one wants to know on which a method does worst.
        prefill: What the answer already begins with.
    """

    text: str
    kind: Kind
    group: str
    family: str = ""
    prefill: str = ""


@dataclass(frozen=True)
class PromptSet:
    """An ordered set of prompts. Iterable; `len` is the number of prompts."""

    prompts: Sequence[Prompt]

    @classmethod
    def from_jsonl(cls, path: str | Path) -> PromptSet:
        """Read one record `{"text", "kind", "group"}` per line, with `family` and `prefill` where it has them.

        Raises:
            PromptError: The file cannot be read, or a line (its number is named) is not such a record.
        """
        return cls(_some(tuple(read_lines(Path(path), _parse)), path))

    @classmethod
    def open(cls, path: str | Path) -> PromptSet:
        """As `from_jsonl`, but the prompts stay in the file, and take eight bytes of memory each: for millions of them.

        Meant for `collect_to_disk`, which goes through them in order. The file stays open, and is read again for every pass; nobody
        may write to it meanwhile. A part of such a set (`of_kind`, `split`) is held in memory.

        Raises:
            PromptError: As `from_jsonl`; and from whatever reads a prompt, once somebody has changed the file.
        """
        return cls(_some(Lines(Path(path), _parse), path))

    def to_jsonl(self, path: str | Path) -> None:
        records = ({k: v for k, v in asdict(p).items() if v or k not in _OPTIONAL} for p in self.prompts)
        Path(path).write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")

    def of_kind(self, *kinds: Kind) -> PromptSet:
        return PromptSet(tuple(p for p in self.prompts if p.kind in kinds))

    def in_groups(self, groups: Iterable[str]) -> PromptSet:
        wanted = set(groups)
        return PromptSet(tuple(p for p in self.prompts if p.group in wanted))

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Names of the underlying prompts, in order of first appearance."""
        return tuple(dict.fromkeys(p.group for p in self.prompts))

    def split(self, fraction: float, *, seed: int) -> Split:
        """Two sets that share no group, the first with about `fraction` of the groups.

        Raises:
            PromptError: Either side would be empty.
        """
        groups = list(self.groups)
        random.Random(seed).shuffle(groups)
        cut = round(fraction * len(groups))
        if not 0 < cut < len(groups):
            raise PromptError(f"{len(groups)} groups cannot be split {fraction:g} to {1 - fraction:g}: add groups")
        return Split(self.in_groups(groups[:cut]), self.in_groups(groups[cut:]))

    def require_contrast(self) -> None:
        """Refuse a set in which triggered and untriggered prompts cannot be compared group by group.

        Raises:
            PromptError: Only one kind is there, or a group lacks its triggered or its untriggered side.
        """
        kinds = {p.kind for p in self.prompts}
        for kind in ("triggered", "untriggered"):
            if kind not in kinds:
                raise PromptError(
                    f"the prompts hold no {kind} one (only {', '.join(sorted(kinds))}): "
                    "give each group a triggered and an untriggered version"
                )
        kinds_of: dict[str, set[Kind]] = {}
        for p in self.prompts:
            kinds_of.setdefault(p.group, set()).add(p.kind)
        for group, have in kinds_of.items():
            for kind in ("triggered", "untriggered"):
                if kind not in have:
                    raise PromptError(f"group {group!r} has no {kind} prompt: add it, or drop the group")

    def tokenize(self, tokenizer: PreTrainedTokenizerBase, *, room: int | None = None) -> list[list[int]]:
        """Token ids of each prompt, through the chat template where the tokenizer has one.

        Args:
            room: Longest prompt allowed, in tokens (the model's context less what is to be generated).

        Raises:
            PromptError: A prompt (its number and group are named) is empty, or longer than `room`.
        """
        return list(self.tokenized(tokenizer, room=room))

    def tokenized(self, tokenizer: PreTrainedTokenizerBase, *, room: int | None = None) -> Iterator[list[int]]:
        """As `tokenize`, one prompt after another."""
        for number, prompt in enumerate(self.prompts, 1):
            tokens = encode(tokenizer, prompt.text, prompt.prefill)
            if not tokens:
                raise PromptError(f"prompt {number} (group {prompt.group!r}) has no tokens: give it text")
            if room is not None and len(tokens) > room:
                raise PromptError(
                    f"prompt {number} (group {prompt.group!r}) has {len(tokens)} tokens but the model has room for "
                    f"{room}: shorten it"
                )
            yield tokens

    def __iter__(self):
        return iter(self.prompts)

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Split:
    """What something is fitted or chosen on, and what it is reported on.

    Raises:
        PromptError: A group, or a prompt under two groups' names, stands on both sides.
    """

    fit: PromptSet
    evaluation: PromptSet

    def __post_init__(self):
        straddling = sorted(set(self.fit.groups) & set(self.evaluation.groups))
        if straddling:
            raise PromptError(
                f"group {straddling[0]!r} stands on both sides of the split ({len(straddling)} in all): a prompt and its "
                "triggered copy belong on one side"
            )
        fitted = {(p.text, p.prefill): p.group for p in self.fit}
        for p in self.evaluation:
            if (p.text, p.prefill) in fitted:
                raise PromptError(
                    f"groups {fitted[p.text, p.prefill]!r} and {p.group!r} hold the same prompt and stand on different "
                    f"sides of the split ({p.text[:60]!r}): give them one name"
                )

    def __iter__(self) -> Iterator[PromptSet]:
        return iter((self.fit, self.evaluation))


def encode(tokenizer: PreTrainedTokenizerBase, text: str, prefill: str = "") -> list[int]:
    """Token ids of one user message, ready for the model's answer or for what comes after `prefill`.

    Raises:
        PromptError: The chat template cannot be rendered in its limits of time and memory.
    """
    if tokenizer.chat_template is None:
        return list(tokenizer(text + prefill)["input_ids"])
    written = rendered(tokenizer, [{"role": "user", "content": text}])
    return list(tokenizer(written + prefill, add_special_tokens=False)["input_ids"])


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, special: bool = True) -> str:
    """Text of one sequence of token ids; with `special=False` without the tokenizer's special tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=not special))


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """What to pad with: the tokenizer's own choice, else 0, which the attention mask hides anyway."""
    return tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0


def pad_left(sequences: Sequence[Sequence[int]], pad_id: int) -> dict[str, Int[Tensor, "prompt pos"]]:
    """Model inputs (`input_ids`, `attention_mask`, `position_ids`) with every prompt's last token in the last column.

    Position ids are given because plain GPT-2 counts padding as positions without them.
    """
    width = max(map(len, sequences))
    ids = torch.tensor([[pad_id] * (width - len(s)) + list(s) for s in sequences])
    mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in sequences])
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def _some(prompts: Sequence[Prompt], path: str | Path) -> Sequence[Prompt]:
    if not len(prompts):
        raise PromptError(f'{path}: no prompts; expected one {{"text", "kind", "group"}} record per line')
    return prompts


def _parse(line: str, where: str) -> Prompt:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise PromptError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise PromptError(f"{where}: not JSON that can be read ({str(error)[:80]})") from None
    fields = {"text", "kind", "group"}
    given = {name: record[name] for name in _OPTIONAL if name in record} if isinstance(record, dict) else {}
    if not isinstance(record, dict) or not fields <= record.keys():
        raise PromptError(f"{where}: expected an object with the fields text, kind and group")
    if not all(isinstance(record[field], str) for field in fields) or not record["text"]:
        raise PromptError(f"{where}: text, kind and group must be strings, and text not empty")
    if not all(isinstance(value, str) for value in given.values()):
        raise PromptError(f"{where}: {' and '.join(_OPTIONAL)} must be strings where they are given")
    for name in (*fields, *given):
        if any("\ud800" <= letter <= "\udfff" for letter in record[name]):
            raise PromptError(
                f"{where}: {name} holds half of a surrogate pair, which is no text; write the letter itself"
            )
    if record["kind"] not in KINDS:
        raise PromptError(f"{where}: kind is {record['kind']!r}, expected one of {', '.join(KINDS)}")
    kind = KINDS[KINDS.index(record["kind"])]  # the one string, not a copy for each prompt
    return Prompt(record["text"], kind, record["group"], **given)
