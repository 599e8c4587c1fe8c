"""Pairs of prompts to patch between, and the positions at which the two runs correspond.

1. Each group gives one pair: its triggered prompt (the *clean* run, where the behaviour occurs) and a counterpart
   without the trigger (the *corrupted* run).
2. A counterpart of the same token count corresponds position by position. Any other is aligned at the common prefix
   and the common suffix; what stands between has no counterpart, and patching there is undefined, never guessed.
3. Positions are gathered into named spans, so that pairs of different length share one axis.

Knows nothing about activations. Nothing is ever truncated.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from transformers import PreTrainedTokenizerBase

from ..errors import PromptError
from ..models.prompts import PromptSet, decode
from ..untrusted import visible

How = Literal["near-miss of equal length", "untriggered of equal length", "aligned at prefix and suffix"]
Direction = Literal["denoising", "noising"]
Positions = tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """Two prompts of one group.

    Attributes:
        group: Name of the underlying prompt.
        clean, corrupted: Token ids of the triggered prompt and of its counterpart.
        how: How the two were made to correspond.
        clean_spans, corrupted_spans: By span of `Pairs.spans`, the positions that belong to it on either side. A span
            that is empty on one side has no counterpart there.
    """

    group: str
    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    how: How
    clean_spans: tuple[Positions, ...]
    corrupted_spans: tuple[Positions, ...]

    @property
    def first_difference(self) -> int:
        """Positions before this one hold the same tokens in both runs, so in a causal model the same activations."""
        return _common_prefix(self.clean, self.corrupted)

    def moves(self, span: int) -> list[tuple[int, int]]:
        """Clean and corrupted positions of a span that correspond and whose activations may differ.

        Where both stand at the same place before the first difference, a causal model has seen the same tokens.
        """
        both = self.clean_spans[span], self.corrupted_spans[span]
        same = self.first_difference
        return [(c, k) for c, k in zip(*both, strict=True) if not c == k < same] if all(both) else []

    @property
    def position_map(self) -> dict[int, int]:
        """Clean position to the corrupted position that corresponds to it."""
        spans = zip(self.clean_spans, self.corrupted_spans, strict=True)
        return {c: k for clean, corrupted in spans if corrupted for c, k in zip(clean, corrupted, strict=True)}


@dataclass(frozen=True)
class Pairs:
    """Pairs with a common axis of position spans. Iterable; `len` is the number of pairs.

    Attributes:
        pairs: One per group.
        spans: Names along the position axis: `prefix` (before anything differs), `trigger 0`, `trigger 1`, … (one per
            token of the region that the trigger changes), `rest of prompt`, and `end -2`, `end -1`, … (the tokens that
            end all prompts; at least the last one). Spans that no pair has are left out.
        labels: For each span what to write on an axis: its token, where most pairs agree on it.
    """

    pairs: tuple[Pair, ...]
    spans: tuple[str, ...]
    labels: tuple[str, ...]

    @classmethod
    def from_prompts(
        cls, prompts: PromptSet, tokenizer: PreTrainedTokenizerBase, *, limit: int | None = None, seed: int = 0
    ) -> Pairs:
        """Pair each group's triggered prompt with its first near-miss of the same token count, else the untriggered one.

        Args:
            limit: Most pairs wanted; groups are drawn with `seed` where there are more.

        Raises:
            PromptError: A group lacks its triggered or untriggered prompt, or both have the same tokens.
        """
        groups = list(prompts.groups)
        if limit is not None and limit < len(groups):
            kept = set(random.Random(seed).sample(groups, limit))
            groups = [group for group in groups if group in kept]
        sides: dict[str, dict[str, list[tuple[int, ...]]]] = {group: {} for group in groups}
        part = prompts.in_groups(groups)
        for prompt, ids in zip(part, part.tokenize(tokenizer), strict=True):
            sides[prompt.group].setdefault(prompt.kind, []).append(tuple(ids))
        made = [_choose(group, have) for group, have in sides.items()]
        return cls.from_ids(
            [clean for clean, _, _ in made],
            [corrupted for _, corrupted, _ in made],
            groups=groups,
            untriggered=[untriggered for _, _, untriggered in made],
            decode=lambda token: decode(tokenizer, [token]),
        )

    @classmethod
    def from_ids(
        cls,
        clean: Sequence[Sequence[int]],
        corrupted: Sequence[Sequence[int]],
        *,
        groups: Sequence[str] | None = None,
        untriggered: Sequence[Sequence[int]] | None = None,
        decode: Callable[[int], str] = str,
    ) -> Pairs:
        """Pairs of token ids, row by row.

        Args:
            groups: Name of each pair; its number where none are given.
            untriggered: Prompts without any trigger. Near-misses of different pairs share more or fewer tokens with the
                trigger; compared with these, the trigger's tokens are counted from the same place in every pair.
            decode: Token id to the text shown on an axis.

        Raises:
            PromptError: No pairs, an empty prompt, or a pair whose two prompts have the same tokens.
        """
        groups = list(groups) if groups is not None else [str(i) for i in range(len(clean))]
        untriggered = corrupted if untriggered is None else untriggered
        rows = list(zip(groups, map(tuple, clean), map(tuple, corrupted), map(tuple, untriggered), strict=True))
        if not rows:
            raise PromptError("no prompts to pair: give at least one group with a triggered and an untriggered prompt")
        for group, a, b, _ in rows:
            if not a or not b:
                raise PromptError(f"group {group!r}: a prompt has no tokens: give it text")
            if a == b:
                raise PromptError(
                    f"group {group!r}: the triggered prompt and its counterpart have the same tokens, so there is "
                    "nothing to patch: check that the trigger is in the text"
                )
        regions = [_region(a, b, u) for _, a, b, u in rows]
        shared = _common_tail([ids for _, a, b, _ in rows for ids in (a, b)])
        tail = max(1, min(shared, *(after for _, after in regions)))
        width = max(len(a) - after - before for (_, a, _, _), (before, after) in zip(rows, regions, strict=True))
        names = ["prefix", *(f"trigger {j}" for j in range(width)), "rest of prompt"]
        names += [f"end {-i}" for i in range(tail, 0, -1)]
        spanned = [_spans(len(a), len(b), *r, tail, width) for (_, a, b, _), r in zip(rows, regions, strict=True)]
        used = [i for i in range(len(names)) if any(spans[0][i] for spans in spanned)]
        pairs = tuple(
            Pair(group, a, b, _how(a, b, u), *(tuple(side[i] for i in used) for side in spans))
            for (group, a, b, u), spans in zip(rows, spanned, strict=True)
        )
        spans = tuple(names[i] for i in used)
        return cls(pairs, spans, tuple(_label(pairs, i, name, decode) for i, name in enumerate(spans)))

    @property
    def alignment(self) -> dict[str, int]:
        """How many pairs were made in which way."""
        return dict(Counter(pair.how for pair in self.pairs))

    def by_position(self, decode: Callable[[int], str] = str) -> Pairs:
        """The same pairs with one span per position, for comparison position by position.

        Raises:
            PromptError: The prompts are not all of one length.
        """
        lengths = sorted({len(ids) for pair in self.pairs for ids in (pair.clean, pair.corrupted)})
        if len(lengths) > 1:
            raise PromptError(
                f"prompts have {lengths[0]} to {lengths[-1]} tokens, so positions are no common axis: use the named spans"
            )
        spans = tuple((i,) for i in range(lengths[0]))
        pairs = tuple(replace(pair, clean_spans=spans, corrupted_spans=spans) for pair in self.pairs)
        names = tuple(f"position {i}" for i in range(lengths[0]))
        return Pairs(pairs, names, tuple(_label(pairs, i, name, decode) for i, name in enumerate(names)))

    def followed_by(self, tokens: Sequence[int]) -> Pairs:
        """The same pairs with tokens after both prompts, which a metric reads but no cell patches."""
        more = tuple(tokens)
        grown = (replace(p, clean=p.clean + more, corrupted=p.corrupted + more) for p in self.pairs)
        return replace(self, pairs=tuple(grown)) if more else self

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        made = ", ".join(f"{count} {how}" for how, count in self.alignment.items())
        return f"Pairs({len(self)}: {made}; spans: {', '.join(self.spans)})"


def _choose(group: str, have: dict[str, list[tuple[int, ...]]]) -> tuple[tuple[int, ...], ...]:
    """Clean, corrupted and untriggered ids of one group."""
    for kind in ("triggered", "untriggered"):
        if kind not in have:
            raise PromptError(f"group {group!r} has no {kind} prompt: add it, or drop the group")
    untriggered = have["untriggered"][0]
    for clean in have["triggered"]:
        for near_miss in have.get("near-miss", []):
            if len(near_miss) == len(clean):
                return clean, near_miss, untriggered
    return have["triggered"][0], untriggered, untriggered


def _how(clean: Positions, corrupted: Positions, untriggered: Positions) -> How:
    if len(clean) != len(corrupted):
        return "aligned at prefix and suffix"
    return "untriggered of equal length" if corrupted == untriggered else "near-miss of equal length"


def _region(clean: Positions, corrupted: Positions, untriggered: Positions) -> tuple[int, int]:
    """How many clean tokens stand before and after the region that the trigger changes.

    The last token is always after it, even where it differs: it is where both runs are read, so they correspond there.
    """
    before = min(_common_prefix(clean, other) for other in (corrupted, untriggered))
    after = min(
        _common_tail([clean[_common_prefix(clean, other) :], other[_common_prefix(clean, other) :]])
        for other in (corrupted, untriggered)
    )
    return min(before, len(clean) - 1, len(corrupted) - 1), max(after, 1)


def _spans(n: int, m: int, before: int, after: int, tail: int, width: int) -> tuple[tuple[Positions, ...], ...]:
    """Positions of every span in a clean prompt of n tokens and in a corrupted one of m."""
    region = [(before + j,) if before + j < n - after else () for j in range(width)]
    clean = [_range(0, before), *region, _range(n - after, n - tail), *((n - i,) for i in range(tail, 0, -1))]
    region = region if n == m else [() for _ in region]
    corrupted = [_range(0, before), *region, _range(m - after, m - tail), *((m - i,) for i in range(tail, 0, -1))]
    return tuple(clean), tuple(corrupted)


def _range(start: int, stop: int) -> Positions:
    return tuple(range(start, stop))


def _label(pairs: Sequence[Pair], span: int, name: str, decode: Callable[[int], str]) -> str:
    index = name.rpartition(" ")[2]
    if not index.lstrip("-").isdigit():
        return name
    tokens = Counter(pair.clean[pair.clean_spans[span][0]] for pair in pairs if pair.clean_spans[span])
    token, count = tokens.most_common(1)[0]
    if 2 * count < tokens.total():
        return f"(various) ·{index}"
    text = decode(token)
    return f"{visible(text.strip(), limit=60) or repr(text)} ·{index}"


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _common_tail(sequences: Sequence[Sequence[int]]) -> int:
    first = sequences[0][::-1]
    return min(_common_prefix(first, other[::-1]) for other in sequences)
