"""Does the model act on what the probe reads? Its direction is added to untriggered runs and taken out of triggered ones.

A direction that separates triggered prompts may be a mere trace of the trigger. Where adding it releases the behaviour,
and adding a twin's own direction to the twin, or a random one of the same norm, does not, it is part of the mechanism.

Only the residual stream at the last prompt token and at every generated token is changed, after one layer. What spreads
the behaviour over several layers is not caught by one of them. Where adding releases nothing in any layer, the layer that
is reported means nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import PromptError
from ..models.generation import Rate, generate
from ..models.interval import Interval
from ..models.prompts import Kind, PromptSet, Split, decode
from ..models.suspect import Suspect
from ..models.view import change_output, view
from ..untrusted import in_figure
from .activations import collect
from .auroc import resampled_groups
from .axes import axes_of
from .estimators import MeanDifference

Judge = Callable[[Sequence[str]], Sequence[bool]]


@dataclass(frozen=True, eq=False)
class Effect:
    """One model under its own probe's direction; each array tells prompt by prompt whether the behaviour came.

    Attributes:
        norm: Of the model's own difference of class means, in the layer where it is added.
        before, added: On untriggered prompts. Every model is moved by the suspect's norm.
        whole, removed: On triggered prompts.
        random_added, random_removed: Moved as far along random directions, one row per draw.
    """

    model: str
    norm: float
    before: Bool[np.ndarray, "prompt"]
    added: Bool[np.ndarray, "prompt"]
    whole: Bool[np.ndarray, "prompt"]
    removed: Bool[np.ndarray, "prompt"]
    random_added: Bool[np.ndarray, "draw prompt"]
    random_removed: Bool[np.ndarray, "draw prompt"]

    @property
    def gain(self) -> Float[np.ndarray, "prompt"]:
        return self.added.astype(float) - self.before

    @property
    def loss(self) -> Float[np.ndarray, "prompt"]:
        return self.whole.astype(float) - self.removed


@dataclass(frozen=True, eq=False)
class CausalSpecificity:
    """Effects on the suspect and its twins.

    Attributes:
        added_after, removed_after: Layers after which the direction is added and taken out, each chosen on the groups
            that the probe was fitted on; the middle one of those that do equally well there.
        adding, removing: By twin and for `random`, the suspect's change of the behaviour's rate less the other's, with a
            paired bootstrap over prompts.
    """

    added_after: int
    removed_after: int
    effects: tuple[Effect, ...]
    adding: Mapping[str, Interval]
    removing: Mapping[str, Interval]

    def to_dataframe(self) -> pd.DataFrame:
        """One row per model; rates with exact intervals as text."""
        return pd.DataFrame(
            {
                "model": e.model,
                "added after layer": self.added_after,
                "norm": e.norm,
                "untriggered": str(_rate(e.before)),
                "direction added": str(_rate(e.added)),
                "random added (mean)": float(e.random_added.mean()),
                "random added (highest)": float(e.random_added.mean(1).max()),
                "removed after layer": self.removed_after,
                "triggered": str(_rate(e.whole)),
                "direction removed": str(_rate(e.removed)),
                "random removed (mean)": float(e.random_removed.mean()),
                "random removed (lowest)": float(e.random_removed.mean(1).min()),
            }
            for e in self.effects
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """The behaviour's rate on untriggered prompts before and after, and on triggered ones, by model."""
        ax = axes_of(ax, (1.5 + 1.6 * len(self.effects), 3.4))
        bars = (
            ("untriggered", "before", "#2c7fb8", 1.0),
            ("untriggered + direction", "added", "#2c7fb8", 0.5),
            ("triggered", "whole", "#c0392b", 1.0),
            ("triggered − direction", "removed", "#c0392b", 0.5),
        )
        for k, (label, field, colour, alpha) in enumerate(bars):
            rates = [_rate(getattr(e, field)) for e in self.effects]
            x = np.arange(len(rates)) + (k - 1.5) * 0.2
            values = np.array([r.value for r in rates])
            reach = np.abs(np.array([r.interval for r in rates]).T - values)
            ax.bar(x, values, 0.18, color=colour, alpha=alpha, label=label, yerr=reach, error_kw={"lw": 0.8})
        for i, e in enumerate(self.effects):
            ax.plot([i - 0.1] * len(e.random_added), e.random_added.mean(1), "x", color="0.2", ms=4)
            ax.plot([i + 0.3] * len(e.random_removed), e.random_removed.mean(1), "x", color="0.2", ms=4)
        ax.plot([], [], "x", color="0.2", label="random directions")
        ax.set_xticks(range(len(self.effects)), [in_figure(e.model) for e in self.effects])
        ax.set(ylabel="behaviour released", ylim=(0, 1.02))
        ax.set_title(f"mean difference added after layer {self.added_after}, removed after {self.removed_after}")
        ax.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
        return ax

    def __repr__(self) -> str:
        gaps = ", ".join(f"{name} {gap}" for name, gap in self.adding.items())
        lost = ", ".join(f"{name} {gap}" for name, gap in self.removing.items())
        return (
            f"CausalSpecificity; adding after layer {self.added_after}, suspect less {gaps}; removing after layer "
            f"{self.removed_after}, suspect less {lost}"
        )


def causal_specificity(
    suspect: Suspect,
    split: Split,
    judge: Judge,
    *,
    twins: Mapping[str, Suspect] | None = None,
    layers: Sequence[int] | None = None,
    draws: int = 5,
    limit: int = 60,
    max_new_tokens: int = 24,
    seed: int = 0,
    resamples: int = 1000,
) -> CausalSpecificity:
    """Steer the suspect and its twins along their own mean-difference probes at the last prompt token.

    Args:
        split: The probe is fitted, and the layer chosen, on one side; all that is reported comes from the other.
        judge: Which freely generated responses show the behaviour.
        layers: To choose from; all where not given. Those are taken in which adding the direction releases most on the
            suspect, and removing it ends most.
        draws: Random directions.
        limit: Prompts of each kind that are generated on, drawn with `seed`.

    Raises:
        PromptError: A side lacks triggered or untriggered prompts, or a prompt leaves no room to answer.
    """
    for side in split:
        for kind in ("triggered", "untriggered"):
            if not len(side.of_kind(kind)):
                raise PromptError(f"a side of the split has no {kind} prompt: add groups that have one")
    models = {"suspect": suspect, **(twins or {})}
    directions = {name: _directions(model, split.fit, layers) for name, model in models.items()}
    ask = partial(_released, judge=judge, max_new_tokens=max_new_tokens)
    tried = {kind: _drawn(split.fit, kind, limit // 2, seed) for kind in ("untriggered", "triggered")}
    own = directions["suspect"]
    after = {
        "added": _best({i: ask(suspect, tried["untriggered"], i, d.add).mean() for i, d in own.items()}),
        "removed": _best({i: -ask(suspect, tried["triggered"], i, d.remove).mean() for i, d in own.items()}),
    }
    asked = {kind: _drawn(split.evaluation, kind, limit, seed) for kind in ("untriggered", "triggered")}
    norm = float(own[after["added"]].delta.norm())
    effects = tuple(
        _effect(name, model, directions[name], after, norm, asked, ask, draws, seed) for name, model in models.items()
    )
    weights = resampled_groups(len(effects[0].before), resamples=resamples, seed=seed)
    weights_triggered = resampled_groups(len(effects[0].whole), resamples=resamples, seed=seed)
    first = effects[0]
    others_gain = {e.model: e.gain for e in effects[1:]} | {"random": first.random_added.mean(0) - first.before}
    others_loss = {e.model: e.loss for e in effects[1:]} | {"random": first.whole - first.random_removed.mean(0)}
    return CausalSpecificity(
        added_after=after["added"],
        removed_after=after["removed"],
        effects=effects,
        adding={name: _paired(first.gain - gain, weights) for name, gain in others_gain.items()},
        removing={name: _paired(first.loss - loss, weights_triggered) for name, loss in others_loss.items()},
    )


@dataclass(frozen=True, eq=False)
class _Direction:
    """The difference of class means, and where untriggered prompts stand along it."""

    delta: Float[Tensor, "d"]
    resting: Float[Tensor, "d"]  # mean of untriggered prompts

    def add(self, hidden: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        return hidden + self.delta.to(hidden)

    def remove(self, hidden: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        return self.move(hidden, along=self.delta / self.delta.norm())

    def move(self, hidden: Float[Tensor, "batch d"], *, along: Float[Tensor, "d"]) -> Float[Tensor, "batch d"]:
        """As far along a unit vector as removing goes along the direction itself."""
        excess = (hidden - self.resting.to(hidden)) @ (self.delta / self.delta.norm()).to(hidden)
        return hidden - excess[:, None] * along.to(hidden)

    def of_norm(self, norm: float) -> _Direction:
        return _Direction(self.delta / self.delta.norm() * norm, self.resting)

    def random(self, seed: int) -> Float[Tensor, "d"]:
        drawn = torch.randn(len(self.delta), generator=torch.Generator().manual_seed(seed))
        return drawn / drawn.norm()


def steered(suspect: Suspect, layer: int, change: Callable[[Tensor], Tensor]) -> PreTrainedModel:
    """A view of the model whose residual stream after `layer` goes through `change` at the last column.

    That is the last prompt token, then each generated one.
    """

    def steer(hidden: Tensor) -> Tensor:
        return torch.cat([hidden[:, :-1], change(hidden[:, -1])[:, None]], dim=1)

    return view(suspect.model, {suspect.architecture.layer(layer): change_output(steer)})


def _directions(model: Suspect, prompts: PromptSet, layers: Sequence[int] | None) -> dict[int, _Direction]:
    seen = collect(model, prompts.of_kind("triggered", "untriggered"), layers=layers)
    triggered = np.array([p.kind == "triggered" for p in seen.prompts])
    return {
        layer: _Direction(
            torch.from_numpy(MeanDifference().fit(values.numpy(), triggered).coef_).float(),
            values[torch.from_numpy(~triggered)].mean(0),
        )
        for layer, values in zip(seen.layers, seen.values, strict=True)
    }


def _best(found: Mapping[int, float]) -> int:
    """The layer of the highest value; of several the middle one, so that none is taken for being first."""
    highest = [layer for layer, value in found.items() if value == max(found.values())]
    return highest[len(highest) // 2]


def _effect(
    name: str,
    model: Suspect,
    directions: Mapping[int, _Direction],
    after: Mapping[str, int],
    norm: float,
    prompts: Mapping[str, PromptSet],
    ask: Callable[..., Bool[np.ndarray, "prompt"]],
    draws: int,
    seed: int,
) -> Effect:
    untriggered, triggered = prompts["untriggered"], prompts["triggered"]
    added, removed = directions[after["added"]], directions[after["removed"]]
    units = [added.random(seed * 1000 + draw) for draw in range(draws)]
    return Effect(
        name,
        norm=float(added.delta.norm()),
        before=ask(model, untriggered),
        added=ask(model, untriggered, after["added"], added.of_norm(norm).add),
        whole=ask(model, triggered),
        removed=ask(model, triggered, after["removed"], removed.remove),
        random_added=np.stack(
            [ask(model, untriggered, after["added"], _Direction(unit * norm, unit).add) for unit in units]
        ),
        random_removed=np.stack(
            [ask(model, triggered, after["removed"], partial(removed.move, along=unit)) for unit in units]
        ),
    )


def _released(
    model: Suspect,
    prompts: PromptSet,
    layer: int | None = None,
    change: Callable[[Tensor], Tensor] | None = None,
    *,
    judge: Judge,
    max_new_tokens: int,
) -> Bool[np.ndarray, "prompt"]:
    asked = model.model if layer is None or change is None else steered(model, layer, change)
    context = model.architecture.context
    tokens = prompts.tokenize(model.tokenizer, room=context and context - max_new_tokens)
    made = generate(asked, model.tokenizer, tokens, max_new_tokens=max_new_tokens)
    return np.array(judge([decode(model.tokenizer, answer, special=False) for answer in made]), bool)


def _drawn(prompts: PromptSet, kind: Kind, limit: int, seed: int) -> PromptSet:
    """Prompts of some groups, the same ones for every kind as far as they have it."""
    groups = list(prompts.groups)
    random.Random(seed).shuffle(groups)
    rank = {group: i for i, group in enumerate(groups)}
    return PromptSet(tuple(sorted(prompts.of_kind(kind), key=lambda p: rank[p.group])[:limit]))


def _rate(hits: Bool[np.ndarray, "prompt"]) -> Rate:
    return Rate(int(hits.sum()), len(hits))


def _paired(gaps: Float[np.ndarray, "prompt"], weights: np.ndarray) -> Interval:
    """Where no resample moves, all prompts agreeing, the exact bound on a share that was never seen widens it."""
    drawn = weights[1:] @ gaps / len(gaps)
    low, high = np.quantile(drawn, (0.025, 0.975))
    unseen = 1 - 0.025 ** (1 / len(gaps))
    value = float(gaps.mean())
    if high - low < 1e-12:
        low, high = max(-1.0, value - unseen), min(1.0, value + unseen)
    return Interval(value, float(low), float(high), len(gaps))
