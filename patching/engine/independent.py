"""One patched run the plain way, as the truth that both engines are held against.

It takes nothing from an engine: positions come from the pair itself, activations from runs of its two prompts one by one,
unpadded, and every run is one of the user's own model, from the embedding up, under the user's own attention: the patched
one whole, the others until what they are run for has been seen.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...models.architecture import PortSite
from ...models.suspect import Suspect
from ...models.view import Make, change_input, change_output, view
from ..pairs import Pair
from .attention import NAME, CannotSplit
from .precision import at_least_single
from .sites import INSIDE_ATTENTION, Site

Replace = dict[str, Make]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class IndependentCell:
    """One cell.

    Attributes:
        read: Positions at which the metric reads the logits, counted from the end.
        head, heads: Which of how many heads is patched; `heads` is 1 where they are patched together.
        span: Which span is patched; None for all positions that correspond.
    """

    suspect: Suspect
    pair: Pair
    read: Sequence[int]
    site: Site
    layer: int
    head: int
    heads: int
    span: int | None
    clean_base: bool

    def logits(self) -> Float[Tensor, "read vocab"]:
        """Logits of the patched run."""
        return unpatched(self.suspect, self._base, self.read, self._patch())

    @property
    def _base(self) -> tuple[int, ...]:
        return self.pair.clean if self.clean_base else self.pair.corrupted

    @property
    def _source(self) -> tuple[int, ...]:
        return self.pair.corrupted if self.clean_base else self.pair.clean

    @property
    def _moves(self) -> tuple[list[int], list[int]]:
        """Positions of the base run that are patched, and those of the source run that they are patched from."""
        pair, span = self.pair, self.span
        moves = pair.position_map.items()
        if span is not None:
            moves = zip(pair.clean_spans[span], pair.corrupted_spans[span], strict=True)
        clean, corrupted = map(list, zip(*moves, strict=True))
        return (clean, corrupted) if self.clean_base else (corrupted, clean)

    def _patch(self) -> Replace:
        where, site, layer = self.suspect.architecture, self.site, self.layer
        if site in INSIDE_ATTENTION:
            return self._patch_inside_attention()
        change = partial(self._put, given=self._seen(self._source, site), heads=self.heads, head=self.head)
        if site == "resid_mid":  # the layer is entered with the patched stream, and attention adds nothing to it
            stream = change(self._seen(self._base, site))
            nothing = {where.attention_result(layer): change_output(torch.zeros_like)}
            return {**nothing, where.layer(layer): change_input(lambda _: stream)}
        port = where.port(cast(PortSite, site), layer)
        return {port.module: port.change(change)}

    def _patch_inside_attention(self) -> Replace:
        into, out_of = self._moves
        head = slice(None) if self.heads == 1 else self.head
        given: dict[str, Tensor] = {}

        def keep(_: Attend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            given.update(q=q, k=k, v=v)
            raise _Seen

        def change(attend: Attend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            own = {"q": q.clone(), "k": k.clone(), "v": v.clone()}
            if self.site == "pattern":
                z = attend(q, k, v).clone()
                z[:, into, head] = attend(given["q"], given["k"], v)[:, out_of, head]
                return z
            own[self.site][:, head, into] = given[self.site][:, head, into]
            return attend(own["q"], own["k"], own["v"])

        where, layer = self.suspect.architecture, self.layer
        name = where.attention(layer)
        if self.site == "pattern":
            with suppress(_Seen):
                unpatched(self.suspect, self._source, self.read, {name: partial(_attending, keep)})
        else:  # what the source's stream gives at the base's positions (rotary embeddings turn queries and keys)
            stream = partial(self._put, given=self._seen(self._source, "resid_pre"), heads=1, head=0)
            entered: Replace = {where.layer(layer): change_input(stream)}
            with suppress(_Seen):
                unpatched(self.suspect, self._base, self.read, {name: partial(_attending, keep), **entered})
        return {name: partial(_attending, change)}

    def _put(self, own: Tensor, *, given: Tensor, heads: int, head: int) -> Tensor:
        into, out_of = self._moves
        out = own.clone()
        out.unflatten(-1, (heads, -1))[:, into, head] = given.unflatten(-1, (heads, -1))[:, out_of, head]
        return out

    def _seen(self, ids: Sequence[int], site: Site) -> Float[Tensor, "1 pos d"]:
        """What the site puts out in an unpatched run."""
        seen: list[Tensor] = []

        def keep(value: Tensor) -> None:
            seen.append(value)
            raise _Seen

        port = self.suspect.architecture.port(cast(PortSite, site), self.layer)
        with suppress(_Seen):
            unpatched(self.suspect, ids, self.read, {port.module: port.watch(keep)})
        return seen[0]


def unpatched(
    suspect: Suspect, ids: Sequence[int], read: Sequence[int], replace: Replace | None = None
) -> Float[Tensor, "read vocab"]:
    """Logits of one prompt by itself."""
    tokens = torch.tensor([ids], device=suspect.model.device)
    columns = torch.tensor(sorted(len(ids) + position for position in read), device=suspect.model.device)
    model = view(suspect.model, replace or {})
    options = {"attention_mask": torch.ones_like(tokens), "use_cache": False, "logits_to_keep": columns}
    return at_least_single(model(input_ids=tokens, **options).logits[0])


def _attending(change: Callable[..., Tensor], module: nn.Module) -> nn.Module:
    """The attention module with the user's own attention function handed to `change`, with queries, keys and values."""
    if "config" not in module.__dict__:
        raise CannotSplit("its attention names no attention function")
    out = copy.copy(module)
    config: Any = copy.deepcopy(module.config)
    out.__dict__["config"] = config
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    own = ALL_ATTENTION_FUNCTIONS.get(config._attn_implementation, eager)
    config._attn_implementation = NAME

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Tensor:
        return change(lambda q, k, v: own(out, q, k, v, mask, **options)[0], q, k, v)

    out.__dict__["attend"] = attend
    return out


class _Seen(Exception):
    """Thrown from inside a run whose purpose is served, so that the rest is not computed."""
