"""What circuits are made of: places (a component, at some positions) and edges (what one component says to one reader).

Both know their `kind` (random sets are matched by it), the `components` that they belong to and how they are `described`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..components import Component


@dataclass(frozen=True)
class Place:
    """A component, at one of the pairs' spans or, with `span=None`, at all positions. Written `L1H3`, `L1H3 @ end -1`."""

    component: Component
    span: str | None = None

    def __str__(self) -> str:
        return str(self.component) if self.span is None else f"{self.component} @ {self.span}"

    @property
    def kind(self) -> str:
        """`MLP` or of which layer's heads, and at which span."""
        part = "MLP" if self.component.head is None else f"head of L{self.component.layer}"
        return part if self.span is None else f"{part} @ {self.span}"

    @property
    def components(self) -> tuple[Component, ...]:
        return (self.component,)

    @property
    def described(self) -> dict[str, int | str | None]:
        return {"layer": self.component.layer, "head": self.component.head, "span": self.span}


@dataclass(frozen=True)
class Edge:
    """One output as one reader sees it, at all positions. Written `L0H3→L1H2.q`; names as in `edges`."""

    upstream: str
    downstream: str

    def __str__(self) -> str:
        return f"{self.upstream}→{self.downstream}"

    @property
    def kind(self) -> str:
        """What reads: `q`, `k`, `v`, `MLP` or `logits`."""
        return "MLP" if self.downstream.endswith("MLP") else self.downstream.rpartition(".")[2]

    @property
    def components(self) -> tuple[Component, ...]:
        """The component that writes; none for the embedding. A reader that matters writes an edge of its own."""
        if self.upstream == "embedding":
            return ()
        layer, _, head = self.upstream.removeprefix("L").removesuffix("MLP").partition("H")
        return (Component(int(layer), int(head) if head else None),)

    @property
    def described(self) -> dict[str, int | str | None]:
        return {"upstream": self.upstream, "downstream": self.downstream}


AnyPlace = Place | Edge
