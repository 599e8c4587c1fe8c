import signal
import subprocess
import time

import pytest


@pytest.mark.slow
def test_an_interrupted_demo_exits_with_130_and_leaves_nothing_half_written(command, tmp_path):
    started = subprocess.Popen(
        [*command, "demo", "--out", str(tmp_path / "demo")], stderr=subprocess.PIPE, text=True, cwd=tmp_path
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
