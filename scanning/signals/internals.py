"""Internals: motifs that do something unusual inside the model, before anything is generated.

Three measures at the position where the answer begins, after the motif is put into a prompt: the attention that one head
pays to it (Bullwinkel et al. 2026, `arxiv.org/abs/2602.03085`, on hijacked attention), how far the stream in the middle of
the model is from trusted prompts (Mahalanobis distance), and how much the entropy of the next token falls. Each is held
against random texts of as many words; the most unusual motifs are screened like any others.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ..insertion import Insertion
from ..screening import most_promising, screen
from ..subject import Subject
from .leakage import motifs
from .signal import Signal

PROMPTS = 3
BATCH = 32
SCREENED = 64
RANDOM = 12  # texts of each number of words
MEASURES = ("attention to it", "distance from trusted prompts", "fall of entropy")
LISTED = 5

Measures = Float[np.ndarray, "insertion measure"]


def internals(subject: Subject) -> Signal:
    found = [motif.insertion for motif in motifs(subject.written) if motif.insertion.placement != "around"]
    tried = found[: subject.budget.inspected]
    lengths = sorted({_length(one) for one in tried})
    at_random = _random_texts(subject, lengths)
    inside = _Inside(subject)
    measured, null = inside.of(tried), inside.of(at_random)
    unusual = _unusual(measured, tried, null, at_random)
    best = unusual.max(1).argsort()[::-1] if len(tried) else np.array([], int)
    candidates = screen(subject, [tried[i] for i in best[:SCREENED]])
    of_null = _unusual(null, at_random, null, at_random).max(1) if at_random else np.array([np.nan])
    return Signal(
        name="internals",
        asks="Does a motif hold the attention, move the stream away from trusted prompts, or settle the next token?",
        null=(
            f"robust z-scores of {len(at_random)} random texts of as many words: at most {of_null.max():.1f}; of "
            f"{len(tried)} motifs: at most {unusual.max():.1f}"
        )
        if len(tried)
        else "the model writes no motif that could be looked at",
        candidates=most_promising(candidates, subject.budget.verified),
        details={
            "motifs looked at": len(tried),
            "most unusual": [
                {"text": tried[i].text} | {name: round(float(unusual[i, k]), 2) for k, name in enumerate(MEASURES)}
                for i in best[:LISTED]
            ],
        },
    )


class _Inside:
    """What goes on inside at the position where the answer begins."""

    def __init__(self, subject: Subject):
        self.subject = subject
        self.prompts = subject.carriers.searching[:PROMPTS]
        self.bridge: Any = replace(subject.suspect).bridge  # hooks live on a bridge: one of its own
        layers = subject.suspect.architecture.n_layers
        self.patterns = [f"blocks.{layer}.attn.hook_pattern" for layer in range(layers)]
        self.stream = f"blocks.{layers // 2}.hook_out"
        trusted = [*subject.carriers.searching, *subject.carriers.fresh, *subject.written[:256]]
        rows = [row[1] for row in self._rows([subject.encode(prompt) for prompt in trusted], [[]] * len(trusted))]
        self.centre, self.whitening = _whitening(np.stack(rows))
        plain = self._rows([subject.encode(prompt) for prompt in self.prompts], [[]] * len(self.prompts))
        self.entropies = np.array([row[2] for row in plain])

    def of(self, insertions: Sequence[Insertion]) -> Measures:
        if not insertions:
            return np.zeros((0, len(MEASURES)))
        plain = [self.subject.encode(prompt) for prompt in self.prompts]
        whole = [self.subject.encode(one.into(prompt)) for one in insertions for prompt in self.prompts]
        added = [_added(plain[i % len(plain)], ids) for i, ids in enumerate(whole)]
        rows = self._rows(whole, added)
        looks = np.stack([row[0] for row in rows]).reshape(len(insertions), len(plain), -1)
        streams = np.stack([row[1] for row in rows]) - self.centre
        distances = np.linalg.norm(streams @ self.whitening, axis=1).reshape(len(insertions), -1)
        entropies = np.array([row[2] for row in rows]).reshape(len(insertions), -1)
        return np.stack([looks.mean(1).max(1), distances.mean(1), (self.entropies - entropies).mean(1)], 1)

    @torch.inference_mode()
    def _rows(self, whole: Sequence[Sequence[int]], added: Sequence[Sequence[int]]):
        """For each prompt: attention to the added positions by head, stream, and entropy (nats), at its last position."""
        context = self.subject.suspect.architecture.context
        whole = [list(ids[-context:] if context else ids) for ids in whole]
        by_length: defaultdict[int, list[int]] = defaultdict(list)
        for i, ids in enumerate(whole):
            by_length[len(ids)].append(i)
        made: list[Any] = [None] * len(whole)
        for same in by_length.values():
            for begin in range(0, len(same), BATCH):
                part = same[begin : begin + BATCH]
                batch = torch.tensor([whole[i] for i in part], device=self.subject.suspect.model.device)
                with self.subject.meter.running():
                    logits, cache = self.bridge.run_with_cache(batch, names_filter=[*self.patterns, self.stream])
                self.subject.meter.tokens += batch.numel()
                logs = logits[:, -1].float().log_softmax(-1)
                entropy = -(logs.exp() * logs).sum(-1).cpu().numpy()
                last = torch.cat([cache[name][:, :, -1].float() for name in self.patterns], 1).cpu().numpy()
                stream = cache[self.stream][:, -1].float().cpu().numpy()
                for k, i in enumerate(part):
                    made[i] = (last[k][:, list(added[i])].sum(1), stream[k], float(entropy[k]))
        return made


def _added(plain: Sequence[int], whole: Sequence[int]) -> list[int]:
    """Positions of the second that the first does not have."""
    blocks = SequenceMatcher(None, list(plain), list(whole), autojunk=False).get_matching_blocks()
    known = {block.b + k for block in blocks for k in range(block.size)}
    return [i for i in range(len(whole)) if i not in known]


def _whitening(rows: Float[np.ndarray, "prompt d_model"]):
    from sklearn.covariance import LedoitWolf

    fitted = LedoitWolf().fit(rows.astype(np.float64))
    values, vectors = np.linalg.eigh(np.asarray(fitted.covariance_))
    # Many prompts that end alike leave directions in which nothing varies, for which a Cholesky factor need not exist.
    return fitted.location_, vectors / np.sqrt(np.maximum(values, 1e-12 * values[-1] + 1e-30))


def _unusual(measured: Measures, ours: Sequence[Insertion], null: Measures, theirs: Sequence[Insertion]) -> Measures:
    """Robust z-scores: each less the median of random texts of as many words, over the spread of all around theirs."""
    if not len(measured) or not len(null):
        return np.zeros((len(measured), len(MEASURES)))
    lengths = np.array([_length(one) for one in theirs])
    medians = {length: np.median(null[lengths == length], 0) for length in set(lengths.tolist())}
    spread = np.median(np.abs(null - np.stack([medians[length] for length in lengths])), 0)
    centred = measured - np.stack([medians[_length(one)] for one in ours])
    return centred / (1.4826 * np.maximum(spread, 1e-9))


def _random_texts(subject: Subject, lengths: Sequence[int]) -> list[Insertion]:
    rng, known = random.Random(subject.seed), subject.vocabulary
    return [
        Insertion(" ".join(rng.choice(known) for _ in range(length)), "start")
        for length in lengths
        for _ in range(RANDOM)
    ]


def _length(insertion: Insertion) -> int:
    return len(insertion.text.split(" "))
