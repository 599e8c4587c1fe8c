"""The way through the house: a checkpoint and prompts go in, evidence comes out. Imports the other rooms."""

from .behaviour import find_behaviour, without_firing
from .run import audit, python_call

__all__ = ["audit", "find_behaviour", "python_call", "without_firing"]
