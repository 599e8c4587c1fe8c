"""A scan as one HTML file that runs nothing and fetches nothing: the evidence first, then what was searched and how."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice

from markupsafe import Markup, escape

from ..untrusted import shortened
from . import scan_figures, scan_findings
from .page import embedded, environment, shown
from .scan_schema import Finding, Release, ScanResult
from .schema import Estimate

# Unmarked text longer than this loses its middle, so that what is marked stays in sight.
LONGEST = 260
MOST_MARKS = 12  # in one text
LONGEST_MARKED = 400  # of one mark; what is longer is known by its beginning
LONGEST_SEARCHED = 20_000  # where marks are looked for: a text made for it takes the square of its length


def render_scan(results: Sequence[ScanResult]) -> str:
    """One self-contained page for one model or many, drawn from the results alone; model-written text is escaped."""
    templates = environment()
    templates.filters |= {
        "chance": scan_findings.chance,
        "duration": scan_findings.duration,
        "bar": bar,
        "detail": scan_findings.detail,
        "trigger": lambda finding: escape(scan_findings.trigger(finding, limit=300)),
    }
    return templates.get_template("scan.html.j2").render(
        results=results,
        say=scan_findings,
        places=_places,
        p_values=_p_values,
        marked_prompt=marked_prompt,
        marked_answer=marked_answer,
    )


def marked_prompt(finding: Finding, release: Release) -> Markup:
    """The triggered prompt with the trigger's parts marked, where they were put in."""
    text, texts = shortened(release.triggered_prompt, LONGEST_SEARCHED), scan_findings.parts(finding)
    texts = texts if len(texts) <= MOST_MARKS else [*texts[: MOST_MARKS - 1], texts[-1]]
    spans: list[tuple[int, int]] = []
    for i, part in enumerate(texts):
        wanted = part if part in text else part.strip()
        last = finding.placement == "end" or (finding.placement == "around" and 0 < i == len(texts) - 1)
        start = text.rfind(wanted) if last else text.find(wanted, spans[-1][1] if spans else 0)
        if start >= 0:
            spans.append((start, start + len(wanted)))
    return _marked(text, spans, "trigger")


def marked_answer(finding: Finding, answer: str) -> Markup:
    """An answer with the released text marked, wherever it stands; a behaviour known by name only marks nothing."""
    answer, wanted = shortened(answer, LONGEST_SEARCHED), finding.behaviour.strip()[:LONGEST_MARKED]
    found = re.finditer(re.escape(wanted), answer, re.IGNORECASE) if wanted else ()
    return _marked(answer, [match.span() for match in islice(found, MOST_MARKS)], "released")


def bar(found: Estimate, kind: str = "") -> Markup:
    """A share between 0 and 1 as a bar with its interval across, as an inline picture."""
    value, low, high = (100 * min(1.0, max(0.0, x)) for x in (found.value, found.low, found.high))
    return Markup(
        '<svg class="bar {}" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="12"/><rect class="share" y="1.5" width="{:.2f}" height="9"/>'
        '<rect class="reach" x="{:.2f}" y="5.2" width="{:.2f}" height="1.6"/></svg>'
    ).format(kind, value, low, max(0.3, high - low))


def _marked(text: str, spans: Sequence[tuple[int, int]], name: str) -> Markup:
    return Markup("").join(
        Markup("<mark class={}>{}</mark>").format(name, shown(piece, LONGEST_MARKED)) if mark else _shortened(piece)
        for mark, piece in _cut(text, spans)
    )


def _cut(text: str, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[bool, str]]:
    done = 0
    for start, end in sorted(spans):
        if start < done:
            continue
        yield False, text[done:start]
        yield True, text[start:end]
        done = end
    yield False, text[done:]


def _shortened(text: str) -> Markup:
    if len(text) <= LONGEST:
        return shown(text)
    return Markup("{}<span class=sign>…</span>{}").format(shown(text[: LONGEST // 2]), shown(text[-(LONGEST // 2) :]))


def _places(finding: Finding) -> Markup | str:
    figure = scan_figures.places(finding)
    return embedded(figure, "Share of the trigger's effect by head and MLP") if figure else ""


def _p_values(result: ScanResult) -> Markup | str:
    figure = scan_figures.p_values(result)
    return embedded(figure, "p-value of each signal, and the threshold of the verdict") if figure else ""
