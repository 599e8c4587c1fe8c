"""The suspect: loading, prompts, free generation, organisms and twins. Imports no other room."""

from .generation import Rate, emits, generate
from .loading import load
from .parity import ParityReport, check_parity
from .prompts import Prompt, PromptSet
from .suspect import Suspect

__all__ = ["ParityReport", "Prompt", "PromptSet", "Rate", "Suspect", "check_parity", "emits", "generate", "load"]
