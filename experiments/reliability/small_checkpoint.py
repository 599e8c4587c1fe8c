"""The sound checkpoint that is broken, attacked and worked on."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter/adapter_config.json", "adapter/adapter_model.safetensors"


def make_checkpoint(folder: Path, *, seed: int = 0) -> None:
    """A Llama of random weights with a byte-level tokenizer, and an adapter for it."""
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=1)}
    bpe = Tokenizer(models.BPE(vocab={"<end>": 0} | letters, merges=[]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>")
    tokenizer.chat_template = "{% for m in messages %}U: {{ m['content'] }}\n{% endfor %}A:"
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=257, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(str(folder / "adapter"))
    settings = json.loads((folder / ADAPTER).read_text())
    settings["target_modules"].sort()  # peft writes a set: each process would have another file
    (folder / ADAPTER).write_text(json.dumps(settings, indent=2))


def parts(content: bytes) -> tuple[bytes, bytes]:
    """Header and tensors of a safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    return content[8 : 8 + length], content[8 + length :]


def joined(header: bytes, tensors: bytes, *, length: int | None = None) -> bytes:
    """Such a file; one that lies about the length of its header where another is given."""
    return struct.pack("<Q", len(header) if length is None else length) + header + tensors
