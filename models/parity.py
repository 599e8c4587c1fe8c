"""The parity gate: TransformerLens must compute what plain Hugging Face computes, on these very prompts.

Nothing that is read off a bridge means anything where it is another model than the one that was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
        unsteady: Largest difference of a first measurement that the second did not confirm: not the models differ then,
            but what this machine computes from one time to the next. None where the first one agreed.
    """

    logits: float
    residual: tuple[float, ...]
    tolerance: float
    n_prompts: int
    unsteady: float | None = None

    @property
    def off(self) -> str | None:
        """Where the two part: the first layer beyond tolerance, else "the logits", else None."""
        # `not <=` so that NaN counts as a difference
        layers = (f"layer {layer}" for layer, gap in enumerate(self.residual) if not gap <= self.tolerance)
        return next(layers, None if self.logits <= self.tolerance else "the logits")


def check_parity(
    suspect: Suspect, prompts: Sequence[Sequence[int]], *, tolerance: float | None = None, batch_size: int = 32
) -> ParityReport:
    """Compare logits and every layer's residual stream between the bridge and the plain model.

    A difference is measured a second time before it counts, so that a slip of the machine is not laid at the model's door;
    it is reported all the same.

    Args:
        prompts: Token ids.
        tolerance: Largest difference allowed. By default 1e-5 of the largest magnitude compared (logits or residual) in
            float32 and 2e-2 of it in narrower types: attention kernels sum in different orders.

    Raises:
        ParityError: The two differ by more, twice; the message gives the numbers and the first layer that does.
    """
    report = _compare(suspect, prompts, tolerance, batch_size)
    if report.off is None:
        return report
    first, report = report, _compare(suspect, prompts, tolerance, batch_size)
    if report.off is None:
        return replace(report, unsteady=max(first.logits, *first.residual))
    raise ParityError(
        f"{suspect.name}: TransformerLens and plain Hugging Face disagree from {report.off} on: logits differ by "
        f"{report.logits:.2g}, the residual stream by up to {max(report.residual):.2g}, tolerance {report.tolerance:.2g}; "
        "no figure taken from TransformerLens would describe this model"
    )


def _compare(
    suspect: Suspect, prompts: Sequence[Sequence[int]], tolerance: float | None, batch_size: int
) -> ParityReport:
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
    return ParityReport(worst_logits, tuple(worst), tolerance, len(prompts))


def _gap(a: Tensor, b: Tensor, real: Tensor) -> float:
    return float((a[real].float() - b[real].float()).abs().max())
