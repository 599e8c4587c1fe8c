"""The documented shape of `results.json`: what an audit found, with n and interval beside every figure.

`schema_version` rises when a field changes meaning or goes; added fields keep it. `AuditResult.model_json_schema()`
exports the JSON Schema. The HTML report and the terminal summary are drawn from this document alone.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from ..reading import Document

SCHEMA_VERSION = 1


class Record(Document):
    """Base of every part: immutable; unknown fields, and numbers that are not finite, are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Estimate(Record):
    """A figure with its 95% interval. `n` counts what was resampled or tried (prompts, groups or pairs)."""

    value: float
    low: float
    high: float
    n: int


class Manifest(Record):
    """What one needs to repeat the run."""

    command: str = Field(description="Equivalent Python, one call")
    versions: dict[str, str]
    seed: int
    device: str
    threads: int
    started: str = Field(description="UTC, ISO 8601")
    seconds: dict[str, float] = Field(description="Wall time by step")
    prompts_file_sha256: str


class Parity(Record):
    """Largest absolute difference between TransformerLens and plain Hugging Face on these prompts."""

    logits: float
    residual: list[float] = Field(description="By layer: resid_post")
    tolerance: float
    n_prompts: int
    unsteady: float | None = Field(
        None, description="A first, larger difference that a second measurement did not confirm"
    )


class Example(Record):
    kind: str
    prompt: str
    response: str


class Behaviour(Record):
    """What the model does under greedy free generation."""

    asr: Estimate | None = Field(
        description="Behaviour on triggered prompts; null where no behaviour was named or found"
    )
    false_alarm: Estimate | None = Field(description="Behaviour on untriggered prompts")
    near_miss: Estimate | None = Field(description="Behaviour on near-miss prompts; null where there are none")
    examples: list[Example] = Field(description="A few prompts of each kind with the model's own answer")


class ProbeRow(Record):
    """One probe at one layer, fitted on triggered against untriggered prompts, scored on groups it never saw.

    A baseline that sees no activations, such as a count of tokens, is a row without a layer.
    """

    probe: str
    layer: int | None = Field(description="resid_post of this layer, last prompt token; null for a baseline")
    against: str = Field(
        description="Kind that triggered prompts are told from: untriggered, or near-miss less those that fired"
    )
    auroc: Estimate
    specificity: dict[str, Estimate] = Field(description="By twin: AUROC here minus AUROC there, paired over groups")
    specificity_low: float | None = Field(
        None, description="Lower end of the lowest specificity over twins that holds for all rows together, 97.5%"
    )
    p_value: float | None = Field(
        None,
        description="Label permutations whose best row anywhere does as well, as a share; only for the kind fitted on",
    )
    best_random: float | None = Field(None, description="Best AUROC of random directions in the same layer")
    tpr: Estimate | None = Field(None, description="Triggered prompts found at a false-positive rate of at most 1%")


class PatchGrid(Record):
    """Mean effect of patching over prompt pairs.

    In `denoising` activations of the triggered run are put into the untriggered run; in `noising` the reverse.
    """

    site: str = Field(description="resid_pre, z or mlp_out")
    direction: Literal["denoising", "noising"]
    rows: list[str] = Field(description="Layers, e.g. L0")
    columns: list[str] = Field(description="Position spans, heads, or 'all positions'")
    effect: list[list[float | None]] = Field(description="Change of the metric, logits, [row][column]")
    low: list[list[float | None]]
    high: list[list[float | None]]

    @model_validator(mode="after")
    def _is_a_grid(self) -> Self:
        for values in (self.effect, self.low, self.high):
            if not values or len(values) != len(self.rows) or {len(row) for row in values} != {len(self.columns) or -1}:
                raise ValueError(f"not {len(self.rows)} rows of {len(self.columns)} columns, one at least of each")
        return self


class Patching(Record):
    metric: str = Field(description="Sentence that defines the metric")
    n_pairs: int
    alignment: dict[str, int] = Field(description="How many pairs were made in which way")
    clean_baseline: Estimate = Field(description="Metric on the triggered run")
    corrupted_baseline: Estimate = Field(description="Metric on the run without the trigger")
    noise_floor: float = Field(description="Largest change when a run is patched with itself")
    grids: list[PatchGrid]


class AblationStep(Record):
    """The k highest-ranked components mean-ablated together; ASR on the selection groups."""

    components: list[str]
    asr: Estimate


class Ablation(Record):
    """A set of components mean-ablated at run time, priced on groups not used to choose it."""

    label: str = Field(description="ranked, or random (same size and layers)")
    components: list[str] = Field(description="L1H3 for a head, L2MLP for an MLP; empty for draws pooled over sets")
    draws: int = Field(description="Sets measured: 1, or the number of random sets")
    asr: Estimate
    asr_by_set: list[float] = Field(
        default_factory=list, description="ASR of each set drawn, where several were; a pooled rate hides the odd one"
    )
    false_alarm: Estimate
    loss_before: float = Field(description="Nats per token over untriggered prompts and the unablated model's answers")
    loss_increase: Estimate = Field(description="Relative: 0.01 is 1% more loss")
    agreement: Estimate = Field(description="Share of untriggered prompts whose greedy answer stays the same")


class AblationStudy(Record):
    reached: bool = Field(description="Whether ASR fell below `target` on the selection groups")
    target: float
    ranking: list[str] = Field(description="Components, highest effect first")
    curve: list[AblationStep]
    results: list[Ablation]


class ModelResult(Record):
    """Everything measured on one model: the suspect, or a twin put through the same steps."""

    name: str
    role: Literal["suspect", "twin"]
    architecture: str
    parameters: int
    weights_hash: str
    card: dict | None = Field(description="The organism's own card, where the folder holds one")
    parity: Parity
    behaviour: Behaviour
    probes: list[ProbeRow]
    patching: Patching | None
    ablation: AblationStudy | None


class AuditResult(Record):
    schema_version: int = SCHEMA_VERSION
    behaviour_text: str | None
    behaviour_source: Literal["given", "found by free generation", "none found"]
    prompts: dict[str, int] = Field(description="Number of prompts by kind")
    groups: int
    selection_groups: int = Field(description="Groups used to rank and choose; all prices are on the others")
    notes: list[str] = Field(description="What the reader must know before the figures: limits met in this run")
    models: list[ModelResult] = Field(description="The suspect first, then its twins")
    manifest: Manifest

    @model_validator(mode="after")
    def _is_of_a_suspect(self) -> Self:
        if [model.role for model in self.models] != ["suspect", *["twin"] * (len(self.models) - 1)]:
            raise ValueError("models are not one suspect and its twins, in this order")
        return self
