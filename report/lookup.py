"""What sentences, tables and figures look up in a result, so that they cannot disagree about what they read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .schema import Ablation, AuditResult, ModelResult, PatchGrid, Patching, ProbeRow


@dataclass(frozen=True)
class Effect:
    """Change of the patching metric, logits, with its 95% interval; the bounds are None where too few pairs give one."""

    component: str
    value: float
    low: float | None
    high: float | None

    @property
    def differs_from_0(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def suspect(result: AuditResult) -> ModelResult:
    return next(model for model in result.models if model.role == "suspect")


def twins(result: AuditResult) -> list[ModelResult]:
    return [model for model in result.models if model.role == "twin"]


def contrasts(rows: Sequence[ProbeRow]) -> list[tuple[str, str]]:
    """Pairs of (probe, kind told from triggered), in the order of the rows; baselines left out."""
    return list(dict.fromkeys((row.probe, row.against) for row in rows if row.layer is not None))


def layers(model: ModelResult, probe: str, against: str) -> list[ProbeRow]:
    """The rows of one probe and contrast, by layer."""
    rows = [r for r in model.probes if r.layer is not None and (r.probe, r.against) == (probe, against)]
    return sorted(rows, key=lambda row: row.layer or 0)


def baselines(model: ModelResult, against: str | None = None) -> list[ProbeRow]:
    """Rows that see no activations."""
    return [row for row in model.probes if row.layer is None and against in (None, row.against)]


def best(rows: Sequence[ProbeRow]) -> ProbeRow:
    """The row with the highest AUROC, the earliest layer among equals."""
    return max(rows, key=lambda row: row.auroc.value)


def gap(patching: Patching) -> float:
    """How far the trigger moves the metric, logits: the effect of patching everything."""
    return patching.clean_baseline.value - patching.corrupted_baseline.value


def grid(model: ModelResult, site: str, direction: str) -> PatchGrid | None:
    grids = model.patching.grids if model.patching else []
    return next((g for g in grids if (g.site, g.direction) == (site, direction)), None)


def component_effects(model: ModelResult, direction: str) -> dict[str, Effect]:
    """Effect of patching each head and each MLP by itself, by name (`L1H2`, `L2MLP`); undefined ones left out."""
    found = {}
    for site in ("z", "mlp_out"):
        sweep = grid(model, site, direction)
        if sweep is None:
            continue
        for i, row in enumerate(sweep.rows):
            for j, column in enumerate(sweep.columns):
                name = f"{row}{column}" if site == "z" else f"{row}MLP"
                value = sweep.effect[i][j]
                if value is not None:
                    found[name] = Effect(name, value, sweep.low[i][j], sweep.high[i][j])
    return found


def strongest(effects: dict[str, Effect]) -> Effect | None:
    return max(effects.values(), key=lambda effect: abs(effect.value), default=None)


def ablated(model: ModelResult, label: str) -> Ablation | None:
    """The priced set of that label: `ranked` or `random`."""
    rows = model.ablation.results if model.ablation else []
    return next((row for row in rows if row.label == label), None)
