"""Safety training: what is done to a model in the hope that it stops misbehaving. Organism in, organism out.

Each method takes the folder of an organism and returns that of another, whose card carries the whole lineage. Results are
kept under the hash of the parent's weights and the settings, so a run that was stopped goes on.
"""

from collections.abc import Callable
from pathlib import Path

from ...errors import RecipeError
from .adversarial import AdversarialSettings, adversarial
from .reinforcement import ReinforcementSettings, reinforcement
from .stage import Settings
from .supervised import SupervisedSettings, supervised

METHODS: dict[str, Callable[..., Path]] = {"sft": supervised, "rl": reinforcement, "adversarial": adversarial}
_SETTINGS: dict[str, type[Settings]] = {
    "sft": SupervisedSettings,
    "rl": ReinforcementSettings,
    "adversarial": AdversarialSettings,
}


def settings_of(method: str, **changes) -> Settings:
    """The method's usual settings, with changes.

    Raises:
        RecipeError: The method is unknown.
    """
    if method not in _SETTINGS:
        raise RecipeError(f"safety training {method!r} is unknown: expected one of {', '.join(_SETTINGS)}")
    return _SETTINGS[method](**changes)


__all__ = [
    "METHODS",
    "AdversarialSettings",
    "ReinforcementSettings",
    "Settings",
    "SupervisedSettings",
    "adversarial",
    "reinforcement",
    "settings_of",
    "supervised",
]
