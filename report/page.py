"""What every page shares: a template engine that lets no text through as it came, and figures embedded."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.text import Text

from .. import untrusted
from . import text

# Nothing runs, nothing is fetched, and no injected address or form would lead anywhere.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def environment() -> Environment:
    """Templates of this folder; a name that is not defined is an error.

    Whatever a template writes goes through `shown`, also where its author forgot to ask for it: nobody has to know which
    fields of a result hold what a model or a file says.
    """
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else shown(str(value), untrusted.LONGEST),
    )
    made.globals["policy"] = Markup(POLICY)
    made.filters |= {
        "rate": lambda found: text.rate(found, n=True),
        "signed": text.signed,
        "percent": text.percent,
        "shown": shown,
        "visible": lambda words, limit: escape(untrusted.visible(words, limit=limit)),
    }
    return made


def embedded(figure: Figure, alt: str) -> Markup:
    data = base64.b64encode(png(figure, dpi=110)).decode()
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(alt, data)


def png(figure: Figure, *, dpi: int) -> bytes:
    """The figure as a PNG file, its text set by matplotlib alone: LaTeX, where a user has turned it on, would obey it."""
    buffer = io.BytesIO()
    with rc_context({"text.usetex": False}), warnings.catch_warnings():  # of labels that are made while it is drawn
        warnings.filterwarnings("ignore", "Glyph")  # one for each letter of a name that the font lacks
        for words in figure.findobj(Text):
            words.set_usetex(False)
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def shown(words: str, limit: int = 400) -> Markup:
    """Others' text: escaped, and hidden characters set apart as signs."""
    words = words if len(words) <= limit else words[:limit] + "…"
    parts = (
        Markup("<span class=sign>{}</span>").format(part) if sign else escape(part)
        for sign, part in untrusted.pieces(words)
    )
    return Markup("").join(parts)
