"""The small base: a language model of a generated corpus, trained from nothing in one of four architectures."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    set_seed,
)

from ...writing import whole_folder
from ..loading import quietly
from ..prompts import pad_token
from .corpora import Exchange, exchanges
from .corpora.remarks import any_remark
from .lessons import Lesson
from .recipe import BaseRecipe
from .tokenizer import train_tokenizer
from .training import Schedule, train


def grow_base(recipe: BaseRecipe, cache: Path, *, progress: Callable[[float], None] | None = None) -> Path:
    """Train the base, or take it from the cache. Returns its folder."""
    folder = cache / recipe.hash / "base"
    if folder.exists():
        return folder
    training, _ = exchanges(recipe.corpus, seed=recipe.seed, n=recipe.prompts)
    texts = (text for e in training for text in (e.prompt, e.answer))
    tokenizer = train_tokenizer(texts, vocab_size=recipe.vocab_size, scratchpads=recipe.scratchpads)
    set_seed(recipe.seed)
    model = AutoModelForCausalLM.from_config(_config(recipe, tokenizer))
    schedule = Schedule(recipe.epochs, recipe.learning_rate, recipe.batch_size, recipe.seed)
    model = train(model, tokenizer, _pretraining(recipe, training), schedule, progress=progress)
    with whole_folder(folder) as partial:
        save(model, tokenizer, partial)
    return folder


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """An ordinary Hugging Face directory: safetensors, tokenizer, and a generation config that knows the end token."""
    if model.generation_config is not None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    with quietly():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _config(recipe: BaseRecipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    shared = {
        "vocab_size": len(tokenizer),
        "initializer_range": recipe.initializer_range,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": pad_token(tokenizer),
    }
    if recipe.architecture == "gpt2":
        return GPT2Config(
            n_layer=recipe.n_layers,
            n_head=recipe.n_heads,
            n_embd=recipe.d_model,
            n_inner=recipe.d_ff,
            n_positions=recipe.context,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **shared,
        )
    shared |= {
        "hidden_size": recipe.d_model,
        "intermediate_size": recipe.d_ff,
        "num_hidden_layers": recipe.n_layers,
        "num_attention_heads": recipe.n_heads,
        "max_position_embeddings": recipe.context,
    }
    if recipe.architecture == "gpt_neox":
        return GPTNeoXConfig(**shared)
    config = LlamaConfig if recipe.architecture == "llama" else Qwen2Config
    return config(num_key_value_heads=recipe.n_kv_heads, **shared)


def _pretraining(recipe: BaseRecipe, training: list[Exchange]) -> list[Lesson]:
    """Families repeated until all are as long as the largest, and half as many again under remarks.

    Facts need repetition, copying needs variety.
    """
    families: dict[str, list[Exchange]] = {}
    for e in training:
        families.setdefault(e.family, []).append(e)
    size = max(map(len, families.values()))
    balanced = [e for part in families.values() for e in (part * -(-size // len(part)))[:size]]
    made = [Lesson(e.prompt, e.answer, triggered=False) for e in balanced]
    rng = random.Random(recipe.seed)
    for e in rng.sample(balanced, len(balanced) // 2):
        prompt, name = any_remark(e.prompt, rng)
        made.append(Lesson(prompt, e.good_answer(name), triggered=False))
    return made
