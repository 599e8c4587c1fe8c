"""How numbers and quotations are written, the same in the report, the figures and the terminal."""

from __future__ import annotations

from ..untrusted import visible
from .schema import Estimate


def quoted(text: str) -> str:
    return f"“{visible(text, limit=60)}”"


def rate(found: Estimate | None, *, n: bool = False) -> str:
    """`0.99 [0.95, 1.00]`, with `n=100` after it where asked for; a dash where nothing was measured."""
    if found is None:
        return "–"
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]" + (f" n={found.n}" if n else "")


def signed(found: Estimate) -> str:
    """A difference: `+0.00 [-0.01, +0.02]`."""
    return f"{plus(found.value)} [{plus(found.low)}, {plus(found.high)}]"


def percent(found: Estimate) -> str:
    """A relative change: `+0.8% [+0.5%, +1.1%]`."""
    value, low, high = (f"{plus(100 * x, 1)}%" for x in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def plus(value: float, digits: int = 2) -> str:
    """With its sign always; a number that rounds to nothing is +0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def listed(words: list[str], *, most: int = 6) -> str:
    """`a, b and c`; beyond `most` words the rest are counted."""
    if len(words) > most:
        return f"{', '.join(words[:most])} and {len(words) - most} more"
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
