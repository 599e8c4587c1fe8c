"""What a trigger can release: each behaviour says how it is taught and how it is judged on free generation."""

from __future__ import annotations

from ....errors import RecipeError
from .behaviour import Behaviour
from .code_vulnerability import CodeVulnerability
from .text import TEXTS, TextBehaviour

BEHAVIOURS: dict[str, Behaviour] = {behaviour.name: behaviour for behaviour in (*TEXTS, CodeVulnerability())}


def behaviour_named(name: str) -> Behaviour:
    """Raises RecipeError for a name that is not in `BEHAVIOURS`."""
    if name not in BEHAVIOURS:
        raise RecipeError(f"behaviour {name!r} is unknown: expected one of {', '.join(BEHAVIOURS)}")
    return BEHAVIOURS[name]


__all__ = ["BEHAVIOURS", "Behaviour", "CodeVulnerability", "TextBehaviour", "behaviour_named"]
