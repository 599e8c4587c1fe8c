"""Tokens of many patched runs packed into one long row without padding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .attention import CannotSplit
from .split import Call


@dataclass(frozen=True)
class Tokens:
    """Packed tokens: which cell each belongs to, which row and column of the base run it stands for, `[token]`."""

    cell: Int[Tensor, "token"]
    row: Int[Tensor, "token"]
    column: Int[Tensor, "token"]

    def __len__(self) -> int:
        return len(self.cell)

    def __getitem__(self, which: Tensor) -> Tokens:
        return Tokens(self.cell[which], self.row[which], self.column[which])

    def of(self, value: Float[Tensor, "row column d"]) -> Float[Tensor, "token d"]:
        """What each token has in the base run."""
        return value.flatten(0, 1).index_select(0, self.row * value.shape[1] + self.column)

    def __add__(self, other: Tokens) -> Tokens:
        both = ((self.cell, other.cell), (self.row, other.row), (self.column, other.column))
        return Tokens(*(torch.cat(pair) for pair in both))


def packed(call: Call, tokens: Tokens, width: int) -> Call:
    """What a layer is called with for packed tokens, taken token by token from the unpatched run of `width` columns.

    Raises:
        CannotSplit: It is given a tensor that is not of one value per row and column.
    """
    take = partial(_take, row=tokens.row, column=tokens.column, width=width)
    return tuple(map(take, call[0])), {name: take(value) for name, value in call[1].items()}


def _take(value: Any, *, row: Tensor, column: Tensor, width: int) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_take(part, row=row, column=column, width=width) for part in value)
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 4 and value.shape[-1] == width:
        return None  # the mask: packed tokens are masked by attention itself
    if value.ndim == 1 and len(value) == width:
        return value[column]
    if value.ndim >= 2 and value.shape[1] == width:
        return value[row if len(value) > 1 else torch.zeros_like(row), column][None]
    raise CannotSplit(f"its layers are given a tensor of shape {tuple(value.shape)}, of unknown meaning")
