"""Where the behaviour lives: patching between triggered and untriggered runs, and ablation with its price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..models.generation import Rate
from ..models.prompts import PromptSet
from ..models.suspect import Suspect
from ..patching import Intervention, LogitDifference, Pairs, Price, Pricer, Resting, sweep
from ..patching.ablation_set import Ablate, find_set, rank
from ..patching.components import Component, matched_random_sets
from ..patching.repair.price import MAX_LOSS_INCREASE, SELECTION_ASR, TARGET_ASR
from ..report import schema
from .behaviour import NEW_TOKENS, without_firing
from .rows import mean, rate
from .steps import Steps

RANDOM_DRAWS = 20
PAIRS = 48
SITES = ("resid_pre", "z", "mlp_out")
DIRECTIONS = ("denoising", "noising")


@dataclass(frozen=True)
class Study:
    """What was found in one model, as the report has it; None where there was nothing to patch or to ablate."""

    patching: schema.Patching | None
    ablation: schema.AblationStudy | None


def studied(
    step: Steps,
    suspects: list[Suspect],
    names: list[str],
    selection: PromptSet,
    evaluation: PromptSet,
    behaviour: str,
    notes: list[str],
    seed: int,
) -> list[Study]:
    """Patch every model; rank components on the suspect alone, and ablate the same set in every model.

    Args:
        suspects: The suspect itself first, then its twins.
        selection, evaluation: What components and their number are chosen on, and what is reported.
        notes: What a reader has to know is added to them.
    """
    pairable, firing = without_firing(suspects[0], selection, behaviour)
    if firing:
        notes.append(
            f"{firing} near-miss prompts of the selection groups release the behaviour too. They leave no contrast to patch, "
            "so their groups are paired with the untriggered prompt."
        )
    studies: list[Study] = []
    ranking: list[Component] = []
    chosen: list[Component] | None = None
    curve: list[tuple[list[Component], Rate]] = []
    for i, (name, suspect) in enumerate(zip(names, suspects, strict=True)):
        pairs = Pairs.from_prompts(pairable, suspect.tokenizer, limit=PAIRS, seed=seed)
        metric = LogitDifference.of_behaviour(suspect, pairs, behaviour)
        results = {}
        for site in SITES:
            for direction in DIRECTIONS:
                with step(f"patching {name}"):
                    results[site, direction] = sweep(
                        suspect, pairs, metric, site=site, direction=direction, progress=False
                    )
        patching = _patching(results, pairs)
        comparable = suspect.architecture == suspects[0].architecture
        if i == 0:
            ranking = rank(results["z", "noising"], results["mlp_out", "noising"])
            choosing = Pricer(suspect, selection, behaviour, max_new_tokens=NEW_TOKENS)
            unablated = choosing.asr(suspect.model)
            if unablated.value < TARGET_ASR:
                notes.append(
                    f"The behaviour is released on {unablated} of triggered selection prompts: nothing to ablate."
                )
            else:
                with step(f"choosing what to ablate in {name}"):
                    chosen, curve = find_set(
                        choosing,
                        ranking,
                        _mean_ablating(suspect, selection),
                        target=SELECTION_ASR,
                        max_loss_increase=MAX_LOSS_INCREASE,
                    )
        if not chosen or not comparable:
            studies.append(Study(patching, None))
            continue
        with step(f"ablating {name}"):
            pricing = Pricer(suspect, evaluation, behaviour, max_new_tokens=NEW_TOKENS)
            ablate = _mean_ablating(suspect, selection)
            rows = [_ablation("ranked", chosen, [pricing.price(ablate(chosen), seed=seed)])]
            if i == 0:
                sets = matched_random_sets(chosen, suspect.architecture, draws=RANDOM_DRAWS, seed=seed)
                if sets:
                    rows.append(_ablation("random", [], [pricing.price(ablate(drawn), seed=seed) for drawn in sets]))
                else:
                    notes.append("The ranked set leaves no components of its kind to draw a random set from.")
        study = schema.AblationStudy(
            reached=bool(curve) and curve[-1][1].value < SELECTION_ASR,
            target=TARGET_ASR,
            ranking=[str(component) for component in ranking],
            curve=[schema.AblationStep(components=[str(c) for c in s], asr=rate(asr)) for s, asr in curve]
            if i == 0
            else [],
            results=rows,
        )
        studies.append(Study(patching, study))
    return studies


def _mean_ablating(suspect: Suspect, prompts: PromptSet) -> Ablate:
    """Components at their mean over the untriggered prompts and the suspect's own answers to them."""
    resting = Resting.of(suspect, prompts, max_new_tokens=NEW_TOKENS)
    return lambda components: Intervention(suspect, components, "mean", resting=resting).model


def _patching(results: dict, pairs: Pairs) -> schema.Patching:
    first = results["z", "denoising"]
    return schema.Patching(
        metric=first.metric,
        n_pairs=first.effect.sizes["pair"],
        alignment=dict(pairs.alignment),
        clean_baseline=mean(first.clean.values),
        corrupted_baseline=mean(first.corrupted.values),
        noise_floor=max(result.noise_floor for result in results.values()),
        grids=[_grid(result) for result in results.values()],
    )


def _grid(result) -> schema.PatchGrid:
    interval = result.interval()
    labels = result.effect.coords["label"].values if "label" in result.effect.coords else None
    columns = labels if labels is not None else result.effect.coords[result.column].values
    return schema.PatchGrid(
        site=result.site,
        direction=result.direction,
        rows=[f"L{layer}" for layer in result.effect.coords["layer"].values],
        columns=[str(column) for column in columns],
        effect=_table(result.mean().values),
        low=_table(interval.sel(bound="low").values),
        high=_table(interval.sel(bound="high").values),
    )


def _table(values) -> list[list[float | None]]:
    return [[None if cell != cell else float(cell) for cell in row] for row in values]


def _ablation(label: str, components: Sequence[Component], prices: Sequence[Price]) -> schema.Ablation:
    """One priced set, or the pool of several: rates are summed, losses averaged with the range of the sets."""
    increases = sorted(price.loss_increase.value for price in prices)
    alone = prices[0].loss_increase
    low, high = (alone.low, alone.high) if len(prices) == 1 else (increases[0], increases[-1])
    return schema.Ablation(
        label=label,
        components=[str(component) for component in components],
        draws=len(prices),
        asr=rate(_pool([price.asr for price in prices])),
        asr_by_set=[price.asr.value for price in prices] if len(prices) > 1 else [],
        false_alarm=rate(_pool([price.false_alarm for price in prices])),
        loss_before=prices[0].loss_before,
        loss_increase=schema.Estimate(
            value=sum(increases) / len(increases), low=low, high=high, n=prices[0].false_alarm.n
        ),
        agreement=rate(_pool([price.agreement for price in prices])),
    )


def _pool(rates: Sequence[Rate]) -> Rate:
    return Rate(sum(rate.hits for rate in rates), sum(rate.n for rate in rates))
