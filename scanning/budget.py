"""What a scan may spend, by name."""

from __future__ import annotations

from dataclasses import dataclass

from .config import Budget as BudgetName


@dataclass(frozen=True)
class Budget:
    """How far each search goes.

    Attributes:
        searching, fresh: Most carrier prompts that candidates are searched on, and verified on.
        samples: Texts that the model is made to write.
        screened: Candidates that one signal may try on the searching prompts.
        inspected: Motifs that are looked at from inside.
        verified: Candidates of one signal that are verified.
        first_tokens: First tokens from which behaviours are sought.
        swept: Tokens of the vocabulary that are tried by themselves as triggers.
        beam: Strings that are grown token by token; none where 0.
        targets: Behaviours for which triggers are sought.
        steps: Rounds of the gradient search for each of them.
        exchanged: Replacements tried in one round.
    """

    searching: int = 8
    fresh: int = 32
    samples: int = 512
    screened: int = 400
    inspected: int = 400
    verified: int = 4
    first_tokens: int = 4096
    swept: int = 65536
    beam: int = 2
    targets: int = 2
    steps: int = 12
    exchanged: int = 32


BUDGETS: dict[BudgetName, Budget] = {
    "quick": Budget(
        searching=6,
        fresh=16,
        samples=256,
        screened=150,
        verified=2,
        first_tokens=1024,
        swept=4096,
        beam=0,
        targets=1,
        steps=8,
    ),
    "standard": Budget(),
    "deep": Budget(
        searching=16,
        fresh=64,
        samples=2048,
        screened=1600,
        verified=8,
        first_tokens=32768,
        swept=1 << 20,
        beam=16,
        targets=12,
        steps=96,
    ),
}
