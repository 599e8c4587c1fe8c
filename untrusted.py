"""Text that somebody else wrote, made harmless for the place where it is shown.

Names, prompts, answers, tokens and cards come from a checkpoint under audit and may be hostile. In every place what cannot
be seen becomes a sign, and what is too long loses its middle; figures and Markdown have marks of their own that are made
plain besides. HTML is escaped where it is made, in `report.page`.
"""

from __future__ import annotations

import logging
import re
import string
import unicodedata
import warnings
from collections.abc import Iterator

LONGEST = 2000  # characters of one text that are shown
LONGEST_CODE = 300
LONGEST_LINE = 20_000  # of ours, with others' words in it
LONGEST_OUTPUT = 1_000_000  # lines of ours together

_SIGNS = {"\n": "↵", "\t": "⇥"}
# Letters and marks by category, but nothing is drawn for them.
_BLANK = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
    + "".join(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
)
MOST_STACKED = 4  # marks on one letter: more of them are drawn over the lines above and below


def visible(text: str, *, limit: int = LONGEST) -> str:
    """One line in which every hidden character is shown as a sign, shortened in its middle to about `limit`."""
    return "".join(part for _, part in pieces(shortened(text, limit)))


def shortened(text: str, limit: int) -> str:
    """What is longer loses its middle; a sign stands where it was."""
    return text if len(text) <= limit else f"{text[: limit - limit // 3]}…{text[-(limit // 3) :]}"


def pieces(text: str) -> Iterator[tuple[bool, str]]:
    """The text in order, as runs of plain characters (False) and signs that stand for a hidden one (True).

    Hidden are control, format (bidirectional ones among them), surrogate, private-use and unassigned characters, line and
    paragraph separators, letters and selectors that nothing is drawn for, and marks piled on one letter.
    """
    start = stacked = 0
    for i, character in enumerate(text):
        if " " <= character <= "~":
            stacked = 0
            continue
        stacked = stacked + 1 if unicodedata.category(character) in ("Mn", "Me") else 0
        if stacked <= MOST_STACKED and not _hidden(character):
            continue
        if start < i:
            yield False, text[start:i]
        start = i + 1
        yield True, _SIGNS.get(character, f"⟨U+{ord(character):04X}⟩")
    if start < len(text):
        yield False, text[start:]


def on_terminal(text: str) -> str:
    """Lines stay lines; what would move the cursor, colour, title or link something, or write to the clipboard is shown."""
    return "\n".join(visible(line, limit=LONGEST_LINE) for line in shortened(text, LONGEST_OUTPUT).split("\n"))


def in_figure(text: str, *, limit: int = LONGEST) -> str:
    """As `visible`, and nothing of it is mathematics to matplotlib, which fails on what is no formula."""
    return visible(text, limit=limit).replace("$", r"\$")


def in_markdown(text: str) -> str:
    """A line of our Markdown with others' words in it: none of them is a tag, a link, an image or an attribute.

    Code, emphasis and links to pages beside it stay. Others' words that are to be code go through `coded` first.
    """
    return _MARKUP.sub(_numbered, visible(text))


def coded(text: str) -> str:
    """Others' words as code in Markdown; what a code span cannot hold, such as its own end, is written by number."""
    shown = visible(text, limit=LONGEST_CODE)
    if shown.strip() and not _NO_CODE.search(shown):
        return f"`{shown}`"
    return f"<code>{_PUNCTUATION.sub(_numbered, shown)}</code>"


def inert_logs() -> None:
    """From here on nothing in a log or a warning steers the terminal that it is printed on.

    It replaces what Python keeps for the whole process, so it is for processes of our own.
    """
    made, formatted = logging.getLogRecordFactory(), warnings.formatwarning

    def record(*args, **how) -> logging.LogRecord:
        one = made(*args, **how)
        try:
            one.msg, one.args = on_terminal(one.getMessage()), None
        except Exception:  # a message that its arguments do not fit; logging is never why a program ends
            one.msg, one.args = on_terminal(str(one.msg)), None
        if one.exc_info:
            one.exc_text = on_terminal(logging.Formatter().formatException(one.exc_info))
        return one

    logging.setLogRecordFactory(record)
    warnings.formatwarning = lambda *args, **how: on_terminal(formatted(*args, **how))


def _hidden(character: str) -> bool:
    if character in _BLANK:
        return True
    return not character.isprintable() and unicodedata.category(character) != "Zs"


def _numbered(found: re.Match[str]) -> str:
    return f"&#{ord(found[0])};"


_OURS = r"(?!\#(?:3[3-9]|[4-9]\d|1[01]\d|12[0-6]);)"  # what `_numbered` writes
_MARKUP = re.compile(
    rf"""
      <(?=[A-Za-z/!?])(?!/?code>)       # a tag, a comment, an address
    | &(?=\#?\w+;){_OURS}               # a character by its name or number
    | \](?=[\[(])(?!\([\w-]+\.md\))     # a link or an image, but to a page beside this one
    | \{{(?=[^{{}}]+\}})                # attributes
    | \\(?=\|)                          # would take the backslash from a table's own
    """,
    re.VERBOSE,
)
_NO_CODE = re.compile(rf"[`\\]|^\s|\s$|{_MARKUP.pattern}|</?code>", re.VERBOSE)
_PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}]")
