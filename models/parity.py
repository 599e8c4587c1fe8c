"""The parity gate: TransformerLens must compute what plain Hugging Face computes, on these very prompts.

Nothing that is read off a bridge means anything where it is another model than the one that was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..errors import ParityError
from .prompts import pad_left, pad_token
from .suspect import Suspect
from .view import view, watch_output


@dataclass(frozen=True)
class ParityReport:
    """Largest absolute differences over all prompts and positions.

    Attributes:
        logits: Of the logits.
        residual: By layer, of `resid_post`.
        tolerance: What `logits` and each of `residual` may reach.
        n_prompts: Prompts compared.
    """

    logits: float
    residual: tuple[float, ...]
    tolerance: float
    n_prompts: int


def check_parity(
    suspect: Suspect, prompts: Sequence[Sequence[int]], *, tolerance: float | None = None, batch_size: int = 32
) -> ParityReport:
    """Compare logits and every layer's residual stream between the bridge and the plain model.

    Args:
        prompts: Token ids.
        tolerance: Largest difference allowed. By default 1e-5 of the largest magnitude compared (logits or residual) in
            float32 and 2e-2 of it in narrower types: attention kernels sum in different orders.

    Raises:
        ParityError: The two differ by more; the message gives the numbers and the first layer that does.
    """
    where, bridge = suspect.architecture, suspect.bridge
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(where.n_layers)]
    seen: dict[int, Tensor] = {}
    watched = view(
        suspect.model, {where.layer(i): watch_output(partial(seen.__setitem__, i)) for i in range(where.n_layers)}
    )
    worst = [0.0] * where.n_layers
    worst_logits, scale = 0.0, 1.0
    pad = pad_token(suspect.tokenizer)
    with torch.inference_mode():
        for start in range(0, len(prompts), batch_size):
            batch = pad_left(prompts[start : start + batch_size], pad)
            batch = {name: value.to(suspect.model.device) for name, value in batch.items()}
            real = batch["attention_mask"].bool()
            plain = watched(**batch, use_cache=False).logits
            lens, cache = bridge.run_with_cache(
                batch["input_ids"], attention_mask=batch["attention_mask"], names_filter=names
            )
            worst_logits = max(worst_logits, _gap(lens, plain, real))
            scale = max(scale, float(plain[real].abs().max()))
            for layer, name in enumerate(names):
                worst[layer] = max(worst[layer], _gap(cache[name], seen[layer], real))
                scale = max(scale, float(seen[layer][real].abs().max()))
    if tolerance is None:
        tolerance = (1e-5 if suspect.model.dtype in (torch.float32, torch.float64) else 2e-2) * scale
    report = ParityReport(worst_logits, tuple(worst), tolerance, len(prompts))
    # `not <=` so that NaN counts as a difference
    off = next((f"layer {layer}" for layer, gap in enumerate(worst) if not gap <= tolerance), None)
    if off is None and not worst_logits <= tolerance:
        off = "the logits"
    if off is not None:
        raise ParityError(
            f"{suspect.name}: TransformerLens and plain Hugging Face disagree from {off} on: logits differ by "
            f"{worst_logits:.2g}, the residual stream by up to {max(worst):.2g}, tolerance {tolerance:.2g}; "
            "no figure taken from TransformerLens would describe this model"
        )
    return report


def _gap(a: Tensor, b: Tensor, real: Tensor) -> float:
    return float((a[real].float() - b[real].float()).abs().max())
