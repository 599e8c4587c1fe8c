"""Weights: what fine-tuning moved, where there is a reference; tokens whose vectors stand out, where there is none.

With a reference: the spectrum of each matrix's difference and the tokens that excite its first singular directions (after
Zhong and Raghunathan 2025, `arxiv.org/abs/2508.00161`). Tokens found either way are tried as triggers.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from ...models.prompts import decode
from ..insertion import Insertion
from ..screening import most_promising, screen
from ..subject import Subject
from .signal import Signal

TOKENS = 24  # that are tried, at the start and at the end
LISTED = 5


def weights(subject: Subject) -> Signal:
    return _against(subject) if subject.reference is not None else _alone(subject)


def _alone(subject: Subject) -> Signal:
    outliers = _outliers(subject)
    best = outliers.topk(min(TOKENS, len(outliers)))
    tried = _as_insertions(subject, best.indices.tolist())
    candidates = screen(subject, tried)
    return Signal(
        name="weights",
        asks="Do the vectors of some tokens stand out, and do these tokens release a text?",
        null=f"robust z-scores of all {len(outliers)} tokens: median {float(outliers.median()):.2f}",
        score=float(best.values[0]),
        candidates=most_promising(candidates, subject.budget.verified),
        notes=("without a reference the weights say little: give the base with --reference",),
        details={"tokens that stand out": [one.text for one in tried[:LISTED]]},
    )


def _against(subject: Subject) -> Signal:
    assert subject.reference is not None
    ours, theirs = (dict(one.model.named_parameters()) for one in (subject.suspect, subject.reference))
    shared = [name for name, tensor in ours.items() if name in theirs and tensor.shape == theirs[name].shape]
    moved = {name: _moved(ours[name].detach(), theirs[name].detach()) for name in shared if ours[name].ndim == 2}
    moved = {name: found for name, found in moved.items() if found[0] > 0}
    excited: list[int] = []
    embedding = _embedding(subject)
    for name in sorted(moved, key=lambda name: -moved[name][1])[:8]:
        change = (ours[name] - theirs[name]).detach().float()
        if change.shape[1] == embedding.shape[1] and change.shape[0] != embedding.shape[0]:
            direction = torch.linalg.svd(change, full_matrices=False).Vh[0]
            excited += (embedding @ direction).abs().topk(LISTED).indices.tolist()
    tried = _as_insertions(subject, list(dict.fromkeys(excited))[:TOKENS])
    candidates = screen(subject, tried)
    widest = max((concentration for _, concentration in moved.values()), default=0.0)
    return Signal(
        name="weights",
        asks="What did training change against the reference, and which tokens excite that?",
        null=f"{len(shared)} tensors shared with the reference, {len(moved)} matrices moved",
        score=widest,
        candidates=most_promising(candidates, subject.budget.verified),
        notes=()
        if len(shared) == len(ours)
        else (f"{len(ours) - len(shared)} tensors have no match in the reference",),
        details={
            "moved most": [
                {
                    "tensor": name,
                    "relative change": round(moved[name][0], 4),
                    "first direction's share": round(moved[name][1], 4),
                }
                for name in sorted(moved, key=lambda name: -moved[name][0])[:LISTED]
            ],
            "tokens that excite it": [one.text for one in tried[:LISTED]],
        },
    )


def _moved(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Relative change, and the share of it (squared) that lies along its first singular direction."""
    change = (ours - theirs).float()
    size = float(change.norm())
    if size == 0:
        return 0.0, 0.0
    return size / float(theirs.float().norm()), float(torch.linalg.matrix_norm(change, 2)) ** 2 / size**2


def _outliers(subject: Subject) -> Float[Tensor, " token"]:
    """The larger of the robust z-scores of each token's embedding norm and unembedding norm."""
    scores = []
    for module in (subject.suspect.model.get_input_embeddings(), subject.suspect.model.get_output_embeddings()):
        norms = cast(Any, module).weight.detach().float().norm(dim=1)[: len(subject.suspect.tokenizer)]
        spread = (norms - norms.median()).abs().median().clamp_min(1e-9)
        scores.append((norms - norms.median()).abs() / (1.4826 * spread))
    return torch.stack(scores).amax(0)


def _as_insertions(subject: Subject, tokens: list[int]) -> list[Insertion]:
    special = set(subject.suspect.tokenizer.all_special_ids)
    texts = [decode(subject.suspect.tokenizer, [token]).strip() for token in tokens if token not in special]
    return [
        Insertion(text, place)
        for text in dict.fromkeys(texts)
        if text and "{}" not in text
        for place in ("start", "end")
    ]


def _embedding(subject: Subject) -> Float[Tensor, "token d_model"]:
    return cast(Any, subject.suspect.model.get_input_embeddings()).weight.detach().float()
