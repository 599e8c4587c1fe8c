"""Views: a second model made of the first one's own weights, with some submodules replaced.

Interventions are usually done with hooks, which live on the model and so leak between threads, survive exceptions
and change what the caller owns. A view copies only the module objects on the path to each replacement; every other
module, parameter and buffer is shared, so a view costs no weight memory and the original is never touched.

A view does not copy weights: an in-place edit of the original's parameters is seen by all of its views.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def view(model: M, replace: Mapping[str, Callable[[nn.Module], nn.Module]]) -> M:
    """Return a model that shares everything with `model` except the named submodules.

    Args:
        model: Any module; it is not changed.
        replace: Dotted submodule name to a function that is given the original submodule and returns its stand-in.

    Raises:
        KeyError: A name that `model` does not have.
    """
    out = _shallow(model)
    copied: dict[str, nn.Module] = {}
    for name, make in replace.items():
        *path, leaf = name.split(".")
        parent: nn.Module = out
        for depth, step in enumerate(path, start=1):
            prefix = ".".join(path[:depth])
            if prefix not in copied:
                copied[prefix] = _shallow(_child(parent, step, name))
                parent._modules[step] = copied[prefix]
            parent = copied[prefix]
        parent._modules[leaf] = make(_child(parent, leaf, name))
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


def watch_input(keep: Callable[[Tensor], None]) -> Callable[[nn.Module], nn.Module]:
    """For `view`: leaves the module as it is and hands `keep` its first argument at every call."""
    return lambda inner: _Watch(inner, keep, entering=True)


def watch_output(keep: Callable[[Tensor], None]) -> Callable[[nn.Module], nn.Module]:
    """For `view`: leaves the module as it is and hands `keep` its result (the first of several) at every call."""
    return lambda inner: _Watch(inner, keep, entering=False)


class _Watch(StandIn):
    keep: Callable[[Tensor], None]

    def __init__(self, inner: nn.Module, keep: Callable[[Tensor], None], *, entering: bool):
        super().__init__(inner)
        self.__dict__ |= {"keep": keep, "entering": entering}

    def forward(self, *args, **kwargs):
        if self.entering:
            self.keep(args[0])
            return self.inner(*args, **kwargs)
        out = self.inner(*args, **kwargs)
        self.keep(out[0] if isinstance(out, tuple) else out)
        return out


def _child(parent: nn.Module, step: str, name: str) -> nn.Module:
    child = parent._modules.get(step)
    if child is None:
        raise KeyError(f"{type(parent).__name__} has no submodule {step!r} (asked for {name!r})")
    return child


def _shallow(module: M) -> M:
    out = copy.copy(module)
    out.__dict__["_modules"] = dict(module._modules)
    return out
