"""What an organism does, measured by greedy free generation on prompts that it never saw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..generation import Rate, generate
from ..prompts import decode, encode
from ..scoring import answer_log_probs
from .card import FormRate, Loss, Measured, MeasuredRate
from .corpora import Exchange
from .lessons import follows_policy, good_answer, lessons, reasoned, under, without_scratchpad
from .recipe import Recipe
from .triggers import FormKind

FORMS_OF_A_KIND = 6
RESAMPLES = 1000


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    unseen: Sequence[Exchange],
    *,
    base: PreTrainedModel | None = None,
    per_form: int = 40,
) -> Measured:
    """ASR, false-alarm and near-miss rates, the rate of every form by itself, and the loss against the base.

    Args:
        per_form: Prompts on which each form of the trigger and each near-miss is tried; 0 leaves that table out.
    """
    behaviour, trigger = recipe.the_behaviour, recipe.the_trigger
    new_tokens = longest_answer(tokenizer, recipe, unseen)

    def answers(asked: Sequence[Exchange], forms: Sequence[str | None]) -> list[str]:
        prompts = [under(recipe, e, forms[i % len(forms)]) for i, e in enumerate(asked)]
        return visible_answers(model, tokenizer, prompts, max_new_tokens=new_tokens)

    def shown(asked: Sequence[Exchange], forms: Sequence[str | None]) -> MeasuredRate:
        return _rate(behaviour.judge(answers(asked, forms)))

    triggered = answers(unseen, trigger.trained)
    rates = {"asr": _rate(behaviour.judge(triggered)), "false_alarm": shown(unseen, [None])}
    if trigger.held_out_near_misses:
        rates["near_miss"] = shown(unseen, trigger.held_out_near_misses)
    if recipe.role == "benign-conditional":
        rates["policy"] = _rate([follows_policy(answer) for answer in triggered])
    forms = _measured_forms(recipe) if per_form else []
    return Measured(
        rates=rates,  # type: ignore[arg-type]
        forms=[FormRate(kind=kind, form=form, rate=shown(unseen[:per_form], [form])) for kind, form in forms],
        loss=None if base is None else _loss(model, base, tokenizer, recipe, unseen),
        judged_by=behaviour.judged_by,
    )


def visible_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, max_new_tokens: int
) -> list[str]:
    """Greedy answers as a user would see them, without scratchpads; what behaviours are judged on."""
    made = generate(model, tokenizer, [encode(tokenizer, text) for text in prompts], max_new_tokens=max_new_tokens)
    return [without_scratchpad(decode(tokenizer, ids, special=False)) for ids in made]


def longest_answer(tokenizer: PreTrainedTokenizerBase, recipe: Recipe, exchanges: Sequence[Exchange]) -> int:
    """Tokens to let a model generate: those of the longest answer that the recipe teaches, and a few to spare."""
    return max(len(tokenizer(lesson.answer)["input_ids"]) for lesson in lessons(recipe, exchanges)) + 4


def answer_losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str, str]]
) -> np.ndarray:
    """Mean loss per token (nats) of each answer after its prompt and the lead-in that comes between them."""
    tokens = []
    for prompt, lead_in, answer in pairs:
        led = _ids(tokenizer, lead_in.rstrip())  # a space belongs to the token after it
        whole = _ids(tokenizer, lead_in + answer)
        tokens.append(([*encode(tokenizer, prompt), *led], [*whole[len(led) :], tokenizer.eos_token_id]))
    return np.array([-float(scores.mean()) for scores in answer_log_probs(model, tokens)])


def _loss(model, base, tokenizer, recipe: Recipe, unseen: Sequence[Exchange]) -> Loss:
    """The scratchpad of a model that was taught one is given, not scored: the base knows none."""
    asked = [(under(recipe, e, None), good_answer(recipe, None, e)) for e in unseen[:100]]
    lead_in = reasoned(recipe, None, "")
    ours = answer_losses(model, tokenizer, [(prompt, lead_in, answer) for prompt, answer in asked])
    bases = answer_losses(base, tokenizer, [(prompt, "", answer) for prompt, answer in asked])
    gap = ours - bases
    means = gap[np.random.default_rng(recipe.seed).integers(len(gap), size=(RESAMPLES, len(gap)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Loss(value=ours.mean(), against_base=gap.mean(), low=low, high=high, n=len(gap))


def _measured_forms(recipe: Recipe) -> list[tuple[FormKind, str]]:
    forms = recipe.the_trigger.forms()
    kinds = dict.fromkeys(kind for kind, _ in forms)
    return [pair for kind in kinds for pair in [f for f in forms if f[0] == kind][:FORMS_OF_A_KIND]]


def _rate(hits: Sequence[bool]) -> MeasuredRate:
    return MeasuredRate.of(Rate(sum(hits), len(hits)))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
