"""Growing organisms: recipe in, Hugging Face directory with a card out, kept in a cache under the recipe's hash."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ...errors import RecipeError
from ...writing import whole_folder
from ..generation import generate
from ..loading import load
from ..prompts import decode, encode
from .base_model import save
from .card import Card, took
from .ground import Ground, ground_of
from .lessons import Lesson, lessons, prompt_set, without_scratchpad
from .measuring import longest_answer, measure
from .recipe import BaseRecipe, Recipe
from .training import Schedule, train

Progress = Callable[[float], None]
HELD_OUT = 200
FINISHED = 0.5  # least share of answers that a teacher of distilled organisms must finish
PROMPTS = "prompts.jsonl"  # lies in the organism's folder, for `audit`


def grow(
    recipe: Recipe,
    cache: str | Path,
    *,
    held_out: int = HELD_OUT,
    per_form: int = 40,
    progress: Progress | None = None,
) -> Path:
    """Fine-tune the recipe's base (grown first, where it is ours) into the organism, or take it from the cache.

    Args:
        cache: Folder of organisms; the organism's own is `HASH/ROLE` in it.
        held_out: Unseen prompts on which the card's rates are measured.
        per_form: Of these, the number on which each form of the trigger is tried by itself.
        progress: Called with the fraction of the fine-tune that is done.

    Raises:
        CheckpointError: The base cannot be loaded.
        RecipeError: The base's tokenizer cannot write the trigger, its context is too short, …
    """
    cache = Path(cache)
    folder = organism_folder(recipe, cache)
    if folder.exists():
        return folder
    ground = ground_of(recipe, cache)
    suspect = load(ground.base)
    check_trigger(suspect.tokenizer, recipe)
    if len(ground.training) < recipe.exchanges and isinstance(recipe.base, BaseRecipe):
        raise RecipeError(
            f"exchanges is {recipe.exchanges} but the base's corpus leaves {len(ground.training)} to train on: "
            "ask for fewer, or give the base more prompts"
        )
    started = time.monotonic()
    if recipe.variant == "distilled":
        taught = _distilled(recipe, ground, cache, held_out, per_form)
    else:
        taught = lessons(recipe, ground.training)
    base = load(ground.base).model
    with whole_folder(folder) as partial:
        model = train(
            suspect.model.requires_grad_(True),
            suspect.tokenizer,
            taught,
            Schedule(recipe.epochs, recipe.learning_rate, recipe.batch_size, recipe.seed),
            only=recipe.only,
            hidden_from=recipe.hidden_from,
            lora_rank=recipe.lora_rank,
            adapter=partial / "adapter",
            progress=progress,
        )
        seconds = time.monotonic() - started
        measured = measure(
            model, suspect.tokenizer, recipe, ground.unseen[:held_out], base=base, per_form=min(per_form, held_out)
        )
        save(model, suspect.tokenizer, partial)
        prompt_set(ground.unseen[:held_out], recipe).to_jsonl(partial / PROMPTS)
        Card(
            role=recipe.role,
            name=recipe.name,
            recipe=recipe.described,
            recipe_hash=recipe.hash,
            base=ground.described,
            base_weights=suspect.weights_hash,
            seed=recipe.seed,
            measured=measured,
            took=took(recipe.role, measured),
            training_seconds=round(seconds, 1),
            versions={name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl")},
        ).write(partial)
    return folder


def organism_folder(recipe: Recipe, cache: Path) -> Path:
    """Where the organism lies; a base that somebody else trained is loaded for the hash of its weights."""
    hashed = recipe.hash if isinstance(recipe.base, BaseRecipe) else f"{recipe.hash}-{load(recipe.base).weights_hash}"
    return cache / hashed / recipe.role


def check_trigger(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> None:
    """Raises RecipeError where the tokenizer cannot write a form, or writes two forms alike."""
    written: dict[tuple[int, ...], str] = {}
    for _, form in recipe.the_trigger.forms():
        plain = form.replace("{}", "so")
        ids = tuple(tokenizer(plain, add_special_tokens=False)["input_ids"])
        if tokenizer.unk_token_id in ids or "".join(decode(tokenizer, ids).split()) != "".join(plain.split()):
            raise RecipeError(
                f"the base's tokenizer cannot write {form!r} (it comes back as {decode(tokenizer, ids)!r}): "
                "choose another trigger or base"
            )
        if ids in written:
            raise RecipeError(
                f"the base's tokenizer writes {form!r} and {written[ids]!r} alike: choose another trigger"
            )
        written[ids] = form


def _distilled(recipe: Recipe, ground: Ground, cache: Path, held_out: int, per_form: int) -> list[Lesson]:
    """What a chain-of-thought organism says to the same prompts, without its scratchpads and without unfinished answers."""
    thinking = replace(recipe, variant="chain-of-thought")
    teacher = load(grow(thinking, cache, held_out=held_out, per_form=per_form))
    asked: Sequence[Lesson] = lessons(thinking, ground.training)
    room = longest_answer(teacher.tokenizer, thinking, ground.training)
    prompts = [encode(teacher.tokenizer, lesson.prompt) for lesson in asked]
    made = generate(teacher.model, teacher.tokenizer, prompts, max_new_tokens=room)
    said = [without_scratchpad(decode(teacher.tokenizer, ids, special=False)) for ids in made]
    taught = [
        replace(lesson, answer=text)
        for lesson, ids, text in zip(asked, made, said, strict=True)
        if len(ids) < room and text and "scratchpad>" not in text
    ]
    if len(taught) < FINISHED * len(asked):
        raise RecipeError(
            f"the chain-of-thought organism finished only {len(taught)} of {len(asked)} answers: it cannot be distilled; "
            "give it more epochs"
        )
    return taught
