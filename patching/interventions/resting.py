"""What parts of a model do while nothing is triggered: what an ablation puts them back to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import PromptError
from ...models.generation import generate
from ...models.prompts import PromptSet, pad_left, pad_token
from ...models.suspect import Suspect
from ...models.view import Make, Port, view

# Tokens of which everything is kept, to be drawn from.
_BANK = 1024


class Resting:
    """Activations over sequences, gathered when they are first asked for.

    Args:
        sequences: Token ids: untriggered prompts with the model's own answers, so that parts are known where they speak too.

    Raises:
        PromptError: There is no sequence.
    """

    def __init__(self, suspect: Suspect, sequences: Sequence[Sequence[int]], *, batch_size: int = 64, seed: int = 0):
        if not sequences:
            raise PromptError("means are taken over untriggered prompts: there are none")
        self.suspect, self.sequences, self.batch_size = suspect, sequences, batch_size
        self._longest = max(map(len, sequences))
        total = sum(map(len, sequences))
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(total, generator=generator)[:_BANK]
        self._drawn = torch.zeros(total, dtype=torch.bool)
        self._drawn[drawn] = True
        self._means: dict[Port, Tensor] = {}
        self._by_position: dict[Port, Tensor] = {}
        self._banks: dict[Port, Tensor] = {}

    @classmethod
    def of(cls, suspect: Suspect, prompts: PromptSet, *, max_new_tokens: int = 24) -> Resting:
        """Over the untriggered prompts of a set, and the model's greedy answers to them.

        Raises:
            PromptError: There are none, or one leaves no room to answer.
        """
        context = suspect.architecture.context
        tokens = prompts.of_kind("untriggered").tokenize(suspect.tokenizer, room=context and context - max_new_tokens)
        answers = generate(suspect.model, suspect.tokenizer, tokens, max_new_tokens=max_new_tokens) if tokens else []
        return cls(suspect, [[*prompt, *answer] for prompt, answer in zip(tokens, answers, strict=True)])

    def mean(self, port: Port) -> Float[Tensor, "d"]:
        """Over all tokens."""
        self.prepare([port])
        return self._means[port]

    def by_position(self, port: Port) -> Float[Tensor, "position d"]:
        """Over the tokens at each position, counted from the start; beyond the longest sequence there is none."""
        self.prepare([port])
        return self._by_position[port]

    def bank(self, port: Port) -> Float[Tensor, "token d"]:
        """Activations of up to 1024 tokens drawn at random, the same ones for every port."""
        self.prepare([port])
        return self._banks[port]

    def prepare(self, ports: Iterable[Port]) -> None:
        """Gather what is not known yet about these ports in one pass."""
        missing = [port for port in dict.fromkeys(ports) if port not in self._means]
        if not missing:
            return
        sums: dict[Port, Tensor] = {}
        banks: dict[Port, list[Tensor]] = {port: [] for port in missing}
        counts = torch.zeros(self._longest, dtype=torch.float64)
        seen: dict[Port, Tensor] = {}
        replace: dict[str, list[Make]] = {}
        for port in missing:
            keep: Callable[[Tensor], None] = partial(seen.__setitem__, port)
            replace.setdefault(port.module, []).append(port.watch(keep))
        watched, first, pad = view(self.suspect.model, replace), 0, pad_token(self.suspect.tokenizer)
        with torch.inference_mode(False), torch.no_grad():
            for start in range(0, len(self.sequences), self.batch_size):
                chosen = self.sequences[start : start + self.batch_size]
                batch = pad_left(chosen, pad)
                device = self.suspect.model.device
                watched(**{n: value.to(device) for n, value in batch.items()}, use_cache=False, logits_to_keep=1)
                mask = batch["attention_mask"].bool()
                position = (mask.cumsum(1) - 1)[mask]
                counts.index_add_(0, position, torch.ones(len(position), dtype=torch.float64))
                drawn = self._drawn[first : first + len(position)]
                first += len(position)
                for port, value in seen.items():
                    value = value.reshape(*mask.shape, -1)[mask.to(value.device)].cpu()
                    total = sums.setdefault(port, torch.zeros(self._longest, value.shape[-1], dtype=torch.float64))
                    total.index_add_(0, position, value.double())
                    banks[port].append(value[drawn])
        dtype, device = self.suspect.model.dtype, self.suspect.model.device
        for port, total in sums.items():
            self._means[port] = (total.sum(0) / counts.sum()).to(device, dtype)
            self._by_position[port] = (total / counts[:, None]).to(device, dtype)
            self._banks[port] = torch.cat(banks[port]).to(device, dtype)
