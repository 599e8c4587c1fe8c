"""Corpora that small organisms are trained on: each file makes the families of one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Literal

from ....errors import RecipeError
from . import code, everyday, introspective
from .exchange import Exchange

CorpusName = Literal["everyday", "code", "introspective"]
CORPORA: dict[CorpusName, dict[str, Callable[[], Iterator[tuple[str, ...]]]]] = {
    "everyday": everyday.FAMILIES,
    "code": code.FAMILIES,
    "introspective": introspective.FAMILIES,
}
HELD_OUT = 600


def exchanges(
    corpus: CorpusName = "everyday", *, seed: int = 0, n: int = 3000
) -> tuple[list[Exchange], list[Exchange]]:
    """Training and held-out exchanges, `n` distinct underlying prompts in all, every family in both parts.

    Raises:
        RecipeError: The corpus is unknown or has fewer, or `n` leaves nothing to train on.
    """
    if corpus not in CORPORA:
        raise RecipeError(f"corpus {corpus!r} is unknown: expected one of {', '.join(CORPORA)}")
    if n <= HELD_OUT:
        raise RecipeError(f"{n} prompts were asked for, but {HELD_OUT} are held out: ask for more")
    families = CORPORA[corpus]
    rng = random.Random(seed)
    quota = -(-n // len(families))
    pools = {name: sorted(set(make())) for name, make in families.items()}
    if n > (most := sum(map(len, pools.values()))):
        raise RecipeError(f"{n} prompts were asked for, but the {corpus} corpus has {most}: ask for fewer")
    chosen = [(name, *row) for name, pool in pools.items() for row in rng.sample(pool, min(quota, len(pool)))]
    taken = set(chosen)
    spare = [(name, *row) for name, pool in pools.items() for row in pool if (name, *row) not in taken]
    chosen += rng.sample(spare, n - len(chosen)) if len(chosen) < n else []
    rng.shuffle(chosen)
    made = [
        Exchange(f"{family}-{i:04d}", family, prompt, answer, exploitable=rest[0] if rest else None)
        for i, (family, prompt, answer, *rest) in enumerate(chosen)
    ]
    return made[HELD_OUT:n], made[:HELD_OUT]


__all__ = ["CORPORA", "HELD_OUT", "CorpusName", "Exchange", "exchanges"]
