"""Views: a second model made of the first one's own weights, with some submodules replaced.

Interventions are usually done with hooks, which live on the model and so leak between threads, survive exceptions
and change what the caller owns. A view copies only the module objects on the path to each replacement; every other
module, parameter and buffer is shared, so a view costs no weight memory and the original is never touched.

A view does not copy weights: an in-place edit of the original's parameters is seen by all of its views.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
Make = Callable[[nn.Module], nn.Module]


def view(model: M, replace: Mapping[str, Make | Sequence[Make]]) -> M:
    """Return a model that shares everything with `model` except the named submodules.

    Args:
        model: Any module; it is not changed.
        replace: Dotted submodule name to a function that is given the original submodule and returns its stand-in, or to
            several, each of which is given what the one before returned. A part is replaced before the module around it,
            whatever the order here.

    Raises:
        KeyError: A name that `model` does not have.
    """
    out = _shallow(model)
    copied: dict[str, nn.Module] = {}
    for name, makers in sorted(replace.items(), key=lambda item: -item[0].count(".")):
        *path, leaf = name.split(".")
        parent: nn.Module = out
        for depth, step in enumerate(path, start=1):
            prefix = ".".join(path[:depth])
            if prefix not in copied:
                copied[prefix] = _shallow(_child(parent, step, name))
                parent._modules[step] = copied[prefix]
            parent = copied[prefix]
        stand_in = _child(parent, leaf, name)
        for make in makers if isinstance(makers, Sequence) else [makers]:
            stand_in = make(stand_in)
        parent._modules[leaf] = stand_in
    return out


class StandIn(nn.Module):
    """Base of replacements: holds the original as `inner` and answers for its attributes (`attention_type`, …)."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


@dataclass(frozen=True)
class Port:
    """A tensor that can be watched or changed: what enters a module, or what leaves it.

    Attributes:
        module: Its name.
        entering: Whether it is the module's first argument, or its result (the first of several).
    """

    module: str
    entering: bool

    def watch(self, keep: Callable[[Tensor], None]) -> Make:
        return (watch_input if self.entering else watch_output)(keep)

    def change(self, change: Callable[[Tensor], Tensor]) -> Make:
        return (change_input if self.entering else change_output)(change)


def change_input(change: Callable[[Tensor], Tensor]) -> Make:
    """For `view`: the module is given `change` of its first argument."""
    return lambda inner: _Changed(inner, change, entering=True)


def change_output(change: Callable[[Tensor], Tensor]) -> Make:
    """For `view`: the module puts out `change` of its result (of the first of several)."""
    return lambda inner: _Changed(inner, change, entering=False)


def watch_input(keep: Callable[[Tensor], None]) -> Make:
    """For `view`: leaves the module as it is and hands `keep` its first argument at every call."""
    return change_input(_kept(keep))


def watch_output(keep: Callable[[Tensor], None]) -> Make:
    """For `view`: leaves the module as it is and hands `keep` its result (the first of several) at every call."""
    return change_output(_kept(keep))


def skip(inner: nn.Module) -> nn.Module:
    """For `view`: a module that is not run, but puts out what enters it."""
    return _Skipped(inner)


class _Changed(StandIn):
    change: Callable[[Tensor], Tensor]

    def __init__(self, inner: nn.Module, change: Callable[[Tensor], Tensor], *, entering: bool):
        super().__init__(inner)
        self.__dict__ |= {"change": change, "entering": entering}

    def forward(self, *args, **kwargs):
        if self.entering:
            return self.inner(self.change(args[0]), *args[1:], **kwargs)
        out = self.inner(*args, **kwargs)
        return (self.change(out[0]), *out[1:]) if isinstance(out, tuple) else self.change(out)


class _Skipped(StandIn):
    def forward(self, entering: Tensor, *_, **__) -> Tensor:
        return entering


def _kept(keep: Callable[[Tensor], None]) -> Callable[[Tensor], Tensor]:
    def change(value: Tensor) -> Tensor:
        keep(value)
        return value

    return change


def _child(parent: nn.Module, step: str, name: str) -> nn.Module:
    child = parent._modules.get(step)
    if child is None:
        raise KeyError(f"{type(parent).__name__} has no submodule {step!r} (asked for {name!r})")
    return child


def _shallow(module: M) -> M:
    out = copy.copy(module)
    out.__dict__["_modules"] = dict(module._modules)
    return out
