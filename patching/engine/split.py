"""A model cut into pieces that can be run one by one: its layers, the part of a layer after attention, its head.

All arithmetic is the model's own: a piece is run by calling the model, or one of its layers, with stand-ins that give
back what they are told instead of computing it. The pieces are a view: the model that is cut stays as it was.

A `SplitModel` has state (what its stand-ins do at present), so one belongs to one sweep.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.activations import NewGELUActivation

from ...models.suspect import Suspect
from ...models.view import Make, StandIn, view, watch_input
from .attention import NAME, CannotSplit, Scores, attention
from .precision import at_least_single
from .sites import Site

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class Recording:
    """One unpatched run of prompts.

    Attributes:
        kept: By part (`resid_pre`, `q`, `k`, `v`, `z`, …) and layer, `[row, column, d]`, heads flattened. `resid_pre` has
            one entry more, for what leaves the last layer.
        calls: By layer, what it was called with besides the residual stream.
        masks: By layer, which columns each column attends to, `[row, 1, column, column]`.
        scores: By layer, how its attention is computed.
        logits: At the metric's columns, `[row, read, vocab]`.
    """

    kept: dict[str, dict[int, Tensor]]
    calls: dict[int, Call] = field(default_factory=dict)
    masks: dict[int, Bool[Tensor, "row 1 column column"]] = field(default_factory=dict)
    scores: dict[int, Scores] = field(default_factory=dict)
    logits: Float[Tensor, "row read vocab"] = field(default_factory=lambda: torch.empty(0))


@dataclass
class _Present:
    """What the stand-ins do at present: `None` leaves the model's own module to work."""

    seen: dict[str, Tensor] | None = None
    z: Tensor | None = None
    attn_out: Tensor | None = None
    mlp_out: Tensor | None = None
    top: Tensor | None = None
    recording: Recording | None = None


class SplitModel:
    """The pieces of one suspect's model.

    Args:
        head: Stand-in for the unembedding; none leaves the model's own.
    """

    def __init__(self, suspect: Suspect, head: dict[str, Make]):
        self.where = where = suspect.architecture
        self._now = _Present()
        model = suspect.model
        self._besides: dict[int, int | None] = {}  # how many values each attention returns besides its output
        layers = range(where.n_layers)
        replace = dict(head)
        configs: dict[int, Any] = {}
        owners = dict.fromkeys(prefix for i in layers for prefix in _prefixes(where.attention(i)))
        for name in sorted(owners, key=lambda owner: owner.count(".")):
            if "config" in model.get_submodule(name).__dict__:
                replace[name] = partial(_recast, configs=configs)
        for name, module in model.get_submodule(where.layers).named_modules():
            if type(module) is NewGELUActivation:  # eight passes over memory in Python; the fused one differs by 1e-6
                replace[f"{where.layers}.{name}"] = lambda _: nn.GELU(approximate="tanh")
        for i in layers:
            replace[where.attention_out(i)] = watch_input(partial(self._keep, "z", i))
            if mid := where.resid_mid(i):
                replace[mid] = watch_input(partial(self._keep, "resid_mid", i))
        self.model = _recast(view(model, replace), configs=configs)
        inner: dict[str, Make] = {}
        for i in layers:
            self.model.get_submodule(where.attention(i)).__dict__["attend"] = partial(self._attend, i)
            inner[where.attention(i)] = lambda module, i=i: _Attention(module, self, i)
            if norm := where.attention_norm(i):
                inner[norm] = lambda module, i=i: _Norm(module, self, i)
            if where.attention_result(i) != where.attention(i):
                inner[where.attention_result(i)] = lambda module, i=i: _Site(module, self, i, "attn_out")
            inner[where.mlp_out(i)] = lambda module, i=i: _Site(module, self, i, "mlp_out")
        self.model = view(self.model, inner)
        self.layers = [self.model.get_submodule(where.layer(i)) for i in layers]
        self.model = view(self.model, {where.layer(i): lambda module, i=i: _Layer(module, self, i) for i in layers})

    def record(self, inputs: dict[str, Tensor], columns: Int[Tensor, "read"], parts: set[str]) -> Recording:
        """Run the whole model unpatched and keep the named parts.

        Raises:
            CannotSplit: Attention does not pass through our function, or is of a kind that it does not know.
        """
        recording = Recording({name: {} for name in (*parts, "resid_pre")})
        self._now = _Present(recording=recording)
        try:
            recording.logits = at_least_single(self.model(**inputs, use_cache=False, logits_to_keep=columns).logits)
        finally:
            self._now = _Present()
        if len(recording.masks) < self.where.n_layers:
            raise CannotSplit("its attention does not go through transformers' AttentionInterface")
        return recording

    def look(
        self, index: int, hidden: Float[Tensor, "token d_model"], call: Call
    ) -> dict[str, Float[Tensor, "token d"]]:
        """Queries, keys and values (`q`, `k`, `v`) of packed tokens, as one layer's attention would see them."""
        seen: dict[str, Tensor] = {}
        with suppress(_Enough):
            self._run(index, hidden, call, _Present(seen=seen))
        return seen

    def run_after_attention(
        self,
        index: int,
        hidden: Float[Tensor, "token d_model"],
        call: Call,
        *,
        z: Float[Tensor, "token d"] | None = None,
        attn_out: Float[Tensor, "token d_model"] | None = None,
        mlp_out: Float[Tensor, "token d_model"] | None = None,
    ) -> Float[Tensor, "token d_model"]:
        """One layer on packed tokens with `z` or `attn_out` given, so that no token sees another; also `mlp_out`."""
        return self._run(index, hidden, call, _Present(z=z, attn_out=attn_out, mlp_out=mlp_out))

    def unembed(self, top: Float[Tensor, "token d_model"]) -> Float[Tensor, "token vocab"]:
        """Logits of tokens that have left the last layer."""
        self._now = _Present(top=top[:, None])
        ids = torch.zeros(len(top), 1, dtype=torch.long, device=top.device)
        try:
            return at_least_single(self.model(input_ids=ids, use_cache=False).logits[:, 0])
        finally:
            self._now = _Present()

    def _run(self, index: int, hidden: Tensor, call: Call, now: _Present) -> Tensor:
        self._now = now
        try:
            out = self.layers[index](hidden[None], *call[0], **call[1])
        finally:
            self._now = _Present()
        return (out[0] if isinstance(out, tuple) else out)[0]

    def _keep(self, part: str, layer: int, value: Tensor) -> None:
        recording = self._now.recording
        if recording is not None and part in recording.kept:
            recording.kept[part][layer] = value

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: dict) -> Tensor:
        """`[row, head, column, d]` each to `z [row, column, head, d]`."""
        now = self._now
        if now.seen is not None:
            for name, value in (("q", q), ("k", k), ("v", v)):
                now.seen[name] = rearrange(value[0], "head token d -> token (head d)")
            raise _Enough
        if mask is None or mask.dtype != torch.bool or mask.shape[-1] != k.shape[-2] or now.recording is None:
            raise CannotSplit("its attention mask is of an unknown kind")
        scores = Scores.of(q, options)
        now.recording.scores[layer] = scores
        now.recording.masks[layer] = mask.expand(len(q), *mask.shape[1:])
        for name, value in (("q", q), ("k", k), ("v", v)):
            self._keep(name, layer, rearrange(value, "row head column d -> row column (head d)"))
        return attention(q, k, v, mask, scores).transpose(1, 2)


class _Enough(Exception):
    """Thrown from inside a layer when queries, keys and values have been seen, so that the rest is not computed."""


def parts_of(site: Site) -> set[str]:
    """What has to be recorded to patch a site."""
    besides = {"mlp_out": {"attn_out"}, "pattern": {"z"}}
    return {"q", "k", "v"} | ({site} - {"pattern"}) | besides.get(site, set())


class _Piece(StandIn):
    split: SplitModel
    layer: int

    def __init__(self, inner: nn.Module, split: SplitModel, layer: int):
        super().__init__(inner)
        self.__dict__ |= {"split": split, "layer": layer}


class _Layer(_Piece):
    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        now, last = self.split._now, self.layer == self.split.where.n_layers - 1
        if now.top is not None:
            return now.top if last else hidden
        assert now.recording is not None
        now.recording.calls[self.layer] = args, kwargs
        now.recording.kept["resid_pre"][self.layer] = hidden
        out = self.inner(hidden, *args, **kwargs)
        if last:
            now.recording.kept["resid_pre"][self.layer + 1] = out[0] if isinstance(out, tuple) else out
        return out


class _Attention(_Piece):
    """Attention that, told its `z`, only projects it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        now, where = self.split._now, self.split.where
        given = now.attn_out
        if now.z is not None:
            given = self.inner.get_submodule(where.attention_out(self.layer).rpartition(".")[2])(now.z)
        if given is not None:
            besides = self.split._besides[self.layer]
            return given[None] if besides is None else (given[None], *[None] * besides)
        out = self.inner(*args, **kwargs)
        self.split._besides[self.layer] = len(out) - 1 if isinstance(out, tuple) else None
        if where.attention_result(self.layer) == where.attention(self.layer):
            self.split._keep("attn_out", self.layer, out[0] if isinstance(out, tuple) else out)
        return out


class _Norm(_Piece):
    """The norm before attention, not computed where attention is told what to put out."""

    def forward(self, hidden: Tensor) -> Tensor:
        now = self.split._now
        return self.inner(hidden) if now.z is None and now.attn_out is None else hidden


class _Site(_Piece):
    """A module whose result is `attn_out` or `mlp_out`."""

    site: str

    def __init__(self, inner: nn.Module, split: SplitModel, layer: int, site: str):
        super().__init__(inner, split, layer)
        self.__dict__["site"] = site

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = getattr(self.split._now, self.site)
        if given is not None:
            return given[None]
        out = self.inner(*args, **kwargs)
        self.split._keep(self.site, self.layer, out)
        return out


def _prefixes(name: str) -> list[str]:
    """`a.b.c` to `a`, `a.b`, `a.b.c`."""
    steps = name.split(".")
    return [".".join(steps[: i + 1]) for i in range(len(steps))]


def _recast(module: nn.Module, *, configs: dict[int, Any]) -> nn.Module:
    """A shallow copy whose configuration names our attention function; the user's configuration is not changed."""
    out = copy.copy(module)
    key = id(module.config)
    if key not in configs:
        configs[key] = copy.deepcopy(module.config)
        configs[key]._attn_implementation = NAME
    out.__dict__["config"] = configs[key]
    return out
