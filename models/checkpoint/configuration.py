"""A model's configuration, held against the shapes of its weights before anything is built from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import CheckpointError

DEEPEST = 1024  # layers; the largest published models have some 130
LONGEST = 2**24  # positions
NUMBER = 2**31
ENTRIES = 100_000  # of a list or table

LAYERS = {"num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"}
SIZES = {
    *(
        "hidden_size",
        "n_embd",
        "d_model",
        "embedding_size",
        "word_embed_proj_dim",
        "intermediate_size",
        "n_inner",
        "d_ff",
    ),
    *(
        "ffn_dim",
        "ffn_hidden_size",
        "head_dim",
        "num_attention_heads",
        "n_head",
        "n_heads",
        "num_heads",
        "num_key_value_heads",
    ),
    *(
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "num_experts",
        "num_local_experts",
        "n_routed_experts",
    ),
    *("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "rotary_dim"),
}
# What transformers would run or fetch because a configuration says so.
REFUSED = {
    "auto_map": "asks to run code of its own (auto_map), which is never done; convert the model to an architecture that "
    "transformers has",
    "custom_generate": "asks to run code of its own (custom_generate), which is never done",
    "quantization_config": "is quantised (quantization_config), which other libraries would have to undo; save it dequantised",
}


def check_configuration(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    """Refuse sizes that no tensor bears out, and whatever asks for code; `name` says in errors whose configuration it is.

    Raises:
        CheckpointError: A field asks for more than the weights hold, or for what is never done.
    """
    check_code(config, name)
    deepest = min(len(shapes), DEEPEST)
    widest = max((extent for shape in shapes.values() for extent in shape), default=0)
    widest = max(widest, len(shapes))
    for key, value in _fields(config, name):
        if key in LAYERS and type(value) is int and not 0 < value <= deepest:
            raise CheckpointError(
                f"{name}: {key} is {value}, which the {len(shapes)} tensors of the weights cannot fill"
            )
        if key in SIZES and type(value) is int and not 0 <= value <= widest:
            raise CheckpointError(f"{name}: {key} is {value}, but no tensor of the weights has such an extent")
        if "position" in key and type(value) is int and not 0 <= value <= LONGEST:
            raise CheckpointError(f"{name}: {key} is {value}: expected 0 to {LONGEST}")
        if type(value) is int and abs(value) > NUMBER:
            raise CheckpointError(f"{name}: {key} is {value}, beyond any size or token of a model")
    rows = max((shape[0] for shape in shapes.values() if shape), default=0)
    vocabulary = config.get("vocab_size")
    if vocabulary is not None and not (type(vocabulary) is int and 0 < vocabulary <= rows):
        raise CheckpointError(
            f"{name}: vocab_size is {vocabulary!r:.40}, but no tensor of the weights has as many rows"
        )


def check_code(config: Mapping[str, Any], name: str) -> None:
    """Refuse a document that names code to run or kernels to fetch, at any depth.

    Raises:
        CheckpointError: It does.
    """
    for key, value in _fields(config, name):
        if key in REFUSED and value:
            raise CheckpointError(f"{name}: {REFUSED[key]}")
        if "implementation" in key and isinstance(value, str) and "/" in value:
            raise CheckpointError(f"{name}: {key} names kernels to fetch and run ({value[:80]!r}), which is never done")


def _fields(value: Any, name: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """All fields at any depth, with those of tables in lists."""
    if isinstance(value, Mapping | list) and (len(value) > ENTRIES or depth > 32):
        raise CheckpointError(f"{name}: a list or table of {len(value)} entries, {depth} deep, is no configuration")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key), inner
            yield from _fields(inner, name, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _fields(inner, name, depth + 1)
