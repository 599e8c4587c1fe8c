"""How numbers and untrusted words are written, the same in the report, the figures and the terminal.

Names, prompts and answers come from a checkpoint under audit and may be hostile. Here what cannot be seen is made
visible; escaping for HTML or for a terminal's markup is left to whoever writes there.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from .schema import Estimate

_SIGNS = {"\n": "↵", "\t": "⇥"}
# Letters by category, but nothing is drawn for them.
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"


def pieces(text: str) -> Iterator[tuple[bool, str]]:
    """The text in order, as runs of plain characters (False) and signs that stand for a hidden one (True).

    Hidden are control, format (bidirectional ones among them), surrogate, private-use and unassigned characters, and
    line and paragraph separators.
    """
    plain = ""
    for character in text:
        if character not in _BLANK and unicodedata.category(character) not in (
            "Cc",
            "Cf",
            "Cs",
            "Co",
            "Cn",
            "Zl",
            "Zp",
        ):
            plain += character
            continue
        if plain:
            yield False, plain
            plain = ""
        yield True, _SIGNS.get(character, f"⟨U+{ord(character):04X}⟩")
    if plain:
        yield False, plain


def visible(text: str, *, limit: int | None = None) -> str:
    """One line in which every hidden character is shown as a sign, shortened in its middle to about `limit`."""
    if limit is not None and len(text) > limit:
        text = f"{text[: limit - limit // 3]}…{text[-(limit // 3) :]}"
    return "".join(part for _, part in pieces(text))


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
