"""A tokenizer's files: how large they may be, what they may name, and which patterns they may split text with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from .configuration import check_code
from .documents import read_json

LARGEST = 96 * 2**20  # bytes; the largest published tokenizer.json has some 35 million
ADDED = 20_000  # tokens; each is a pattern of its own
PATTERN = 2_000  # characters
# What `from_pretrained` takes as a path, or as something to make the tokenizer from, in place of the folder's own file.
PATHS = ("vocab_file", "merges_file", "tokenizer_file", "tokenizer_object", "sp_model_kwargs", "gguf_file", "from_slow")
NAMES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def check_tokenizer_files(folder: Path, *, rows: int) -> None:
    """Raises CheckpointError where there is no tokenizer, or none that can be built and used in bounded time.

    Args:
        rows: Of the largest tensor: no vocabulary is larger.
    """
    if not any((folder / name).exists() for name in NAMES):
        raise CheckpointError(
            f"{folder}: no tokenizer (tokenizer.json, tokenizer.model or vocab.json); save it there with "
            "tokenizer.save_pretrained"
        )
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).exists():
            _check_settings(read_json(folder / name, largest=LARGEST), folder / name)
    if (folder / "tokenizer.json").exists():
        _check_fast(read_json(folder / "tokenizer.json", largest=LARGEST), folder / "tokenizer.json", rows)


def _check_settings(settings: dict[str, Any], file: Path) -> None:
    check_code({k: v for k, v in settings.items() if k != "added_tokens_decoder"}, str(file))
    for name in PATHS:
        if settings.get(name):
            raise CheckpointError(f"{file}: {name} names another file or object to build the tokenizer from; drop it")
    longest = settings.get("model_max_length")
    if isinstance(longest, bool) or not isinstance(longest, int | float | None):
        raise CheckpointError(f"{file}: model_max_length is {longest!r:.40}, which is no number")
    added = settings.get("added_tokens_decoder", {})
    if (isinstance(added, dict) and len(added) > ADDED) or len(settings) > ADDED:
        raise CheckpointError(f"{file}: adds more than {ADDED} tokens; train them into the vocabulary")


def _check_fast(tokenizer: dict[str, Any], file: Path, rows: int) -> None:
    added = tokenizer.get("added_tokens") or []
    if not isinstance(added, list):
        raise CheckpointError(f"{file}: its added_tokens are no list; save the tokenizer again")
    if len(added) > min(ADDED, max(rows, 64)):
        raise CheckpointError(
            f"{file}: adds {len(added)} tokens to a model of {rows} rows, more than {ADDED} or its vocabulary"
        )
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict | list):
        raise CheckpointError(f"{file}: its model has no table of tokens (vocab); save the tokenizer again")
    if len(vocabulary) > 2 * rows + 1024:
        raise CheckpointError(f"{file}: has {len(vocabulary)} tokens, but the model's vocabulary ends at {rows - 1}")
    parts = {key: tokenizer.get(key) for key in ("normalizer", "pre_tokenizer", "post_processor", "decoder")}
    for pattern in _patterns(parts):
        if len(pattern) > PATTERN or explodes(pattern):
            raise CheckpointError(
                f"{file}: splits text with a pattern that can take for ever ({pattern[:60]!r}); save the tokenizer with another"
            )


def explodes(pattern: str) -> bool:
    """Whether a repeated group holds a repetition that can match in the same place in many ways.

    A cautious reading of the pattern's text, not a proof: `(a+)+` and `(a|a)*` are found, and so are some harmless patterns of
    their shape; those of published tokenizers, which repeat no such group, pass.
    """
    plain = re.sub(r"\\.|\[(?:\\.|[^\]\\])*\]", "x", pattern)  # classes and escapes are one letter
    plain = re.sub(r"\((?:\?(?:[imsx]+(?::|(?=\)))|:|=|!|<=|<!))", "(", plain)
    while True:
        group = re.search(r"\(([^()]*)\)([*+]|\{\d*,\d*\})?", plain)
        if group is None:
            return False
        if group[2] and re.search(r"[*+|]|\{\d*,\d*\}|\?", group[1]):
            return True
        inside = "+" if re.search(r"[*+]|\{\d*,\d*\}", group[1]) else "x"
        plain = plain[: group.start()] + "x" + inside.replace("x", "") + (group[2] or "") + plain[group.end() :]


def _patterns(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        for key, inner in part.items():
            if key == "Regex" and isinstance(inner, str):
                yield inner
            yield from _patterns(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _patterns(inner)
