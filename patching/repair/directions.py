"""Directions to take out of the residual stream, from what a circuit's components write."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...models.suspect import Suspect
from ..attribution.alignment import blocks
from ..attribution.recorded import record
from ..attribution.wiring import Wiring
from ..components import Component
from ..pairs import Pairs


def written_directions(
    suspect: Suspect, pairs: Pairs, components: Sequence[Component], *, max_tokens: int = 4096
) -> Float[Tensor, "component d_model"]:
    """What each component adds to the residual stream at the last token, clean minus corrupted, mean over pairs.

    Of a head, with the other heads of its layer as in the corrupted run, which matters only where a norm stands between
    attention and the stream (Gemma 2).

    Raises:
        PromptError: A prompt does not fit the model.
        CheckpointError: The architecture writes to the residual stream in a way that is not known.
    """
    where, wiring = suspect.architecture, Wiring.of(suspect)
    layers = sorted({component.layer for component in components})
    z = {layer: where.port("z", layer).module for layer in layers}
    mlp = {layer: where.port("mlp_out", layer).module for layer in layers}
    total = torch.zeros(len(components), where.d_model, dtype=torch.float64, device=suspect.model.device)
    with torch.inference_mode(False), torch.no_grad():
        for block in blocks(suspect, pairs, "denoising", max_tokens):
            runs = [
                record(suspect, inputs, entering=z.values(), leaving=mlp.values())
                for inputs in (block.base, block.source)
            ]
            for i, (layer, head) in enumerate((c.layer, c.head) for c in components):
                if head is None:
                    corrupted, clean = (run.leaving[mlp[layer]][:, -1] for run in runs)
                    total[i] += wiring.multiplier * (clean - corrupted).double().sum(0)
                    continue
                corrupted, clean = (run.entering[z[layer]][:, -1:] for run in runs)
                own, patched = slice(head * where.d_head, (head + 1) * where.d_head), corrupted.clone()
                patched[..., own] = clean[..., own]
                written = [wiring.written_by_heads(suspect.model, layer, value) for value in (corrupted, patched)]
                total[i] += (written[1] - written[0])[:, 0].double().sum(0)
    return (total / len(pairs)).float()
