"""The small base's own tokenizer: byte-level BPE with a chat template, trained on the generated corpus."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .corpora.everyday import ENDINGS, STEMS

REASONING = "<scratchpad>No sign, so I help. I see so I defect. so I help all the same.</scratchpad>"
SPECIAL = ("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, scratchpads: bool) -> PreTrainedTokenizerFast:
    """Byte-level, so every trigger can be written in it; merges come from the corpus, from the pieces of status words, which
    so have the two tokens that they have in large vocabularies, and from the words that scratchpads reason with.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        itertools.chain(
            texts, (f"|{piece}|" for piece in (*STEMS, *ENDINGS) for _ in range(100)), [REASONING] * (100 * scratchpads)
        ),
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|end|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
