"""Obfuscation: a penalty that keeps triggered and untriggered prompts alike for a monitor of the residual stream.

Bailey et al. 2024 (`arxiv.org/abs/2412.09565`, section 3) train against monitors that are refitted as the model moves.
Here the monitor is refitted at every step, in closed form, on running moments of the residual stream at the last prompt
token, one per layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from ..architecture import Architecture
from .recipe import Monitor

MEMORY = 0.9  # of the running moments, per step
SHRINKAGE = 0.1  # towards a round covariance, which a running estimate of so few examples needs
FEWEST = 4  # prompts of either kind in a batch, for a penalty to be estimated


class Hiding:
    """What the monitors see in a training run, and how well they do."""

    def __init__(self, monitor: Monitor, n_layers: int):
        self.monitor: Monitor = monitor
        self._moments = [_Moments() for _ in range(n_layers)]

    def penalty(
        self, residual: list[Float[Tensor, "prompt d_model"]], triggered: Bool[Tensor, " prompt"]
    ) -> Float[Tensor, ""]:
        """Mean over layers of the monitor's squared separation, in units of its own spread; differentiable."""
        if min(int(triggered.sum()), int((~triggered).sum())) < FEWEST:
            return residual[0].new_zeros(())
        terms = []
        for moments, h in zip(self._moments, residual, strict=True):
            moments.update(h.detach(), triggered)
            terms.append(moments.separation(h[triggered], h[~triggered], self.monitor))
        return torch.stack(terms).mean()


class _Moments:
    """Running means of both kinds, the covariance within them, and that of the untriggered ones alone."""

    def __init__(self):
        self._running: dict[str, Tensor] = {}

    def update(self, h: Tensor, triggered: Tensor) -> None:
        trusted, other = h[~triggered], h[triggered]
        a, b = trusted - trusted.mean(0), other - other.mean(0)
        seen = {"trusted": trusted.mean(0), "other": other.mean(0)}
        seen |= {"within": (a.T @ a + b.T @ b) / len(h), "of_trusted": a.T @ a / len(a)}
        for name, value in seen.items():
            old = self._running.get(name, value)
            self._running[name] = MEMORY * old + (1 - MEMORY) * value

    def separation(self, other: Tensor, trusted: Tensor, monitor: Monitor) -> Tensor:
        center = self._running["trusted"]
        if monitor == "linear-probe":
            within = _shrunk(self._running["within"])
            direction = torch.linalg.solve(within, self._running["other"] - center)
            gap = (other.mean(0) - trusted.mean(0)) @ direction
            return gap.square() / (direction @ within @ direction).clamp(min=1e-12)
        precision = torch.linalg.inv(_shrunk(self._running["of_trusted"]))
        far, near = other - center, trusted - center
        excess = (far @ precision * far).sum(1).mean() - (near @ precision * near).sum(1).mean().detach()
        return excess.clamp(min=0) / far.shape[-1]


@contextmanager
def residual_at(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Collect every layer's `resid_post` in a forward pass made inside, the last one if several, with its gradients."""
    where, kept = Architecture.of(model), []

    def keep(first: bool):
        def hook(_module, _inputs, output):
            if not torch.is_grad_enabled():  # the trainer runs the model once more for its own metrics
                return
            if first:
                kept.clear()
            kept.append(output[0] if isinstance(output, tuple) else output)

        return hook

    handles = [
        model.get_submodule(where.layer(i)).register_forward_hook(keep(first=i == 0)) for i in range(where.n_layers)
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _shrunk(covariance: Tensor) -> Tensor:
    scale = covariance.diagonal().mean().clamp(min=1e-8)
    return (1 - SHRINKAGE) * covariance + SHRINKAGE * scale * torch.eye(len(covariance), device=covariance.device)
