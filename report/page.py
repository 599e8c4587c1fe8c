"""What every page shares: a template engine that escapes, figures embedded, and a model's words made harmless."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from . import text


def environment() -> Environment:
    """Templates of this folder; a name that is not defined is an error, and everything is escaped."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    made.filters |= {
        "rate": lambda found: text.rate(found, n=True),
        "signed": text.signed,
        "percent": text.percent,
        "shown": shown,
    }
    return made


def embedded(figure: Figure, alt: str) -> Markup:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(alt, data)


def shown(words: str, limit: int = 400) -> Markup:
    """Model-written text: escaped, and hidden characters set apart as signs."""
    words = words if len(words) <= limit else words[:limit] + "…"
    parts = (
        Markup("<span class=sign>{}</span>").format(part) if sign else escape(part) for sign, part in text.pieces(words)
    )
    return Markup("").join(parts)
