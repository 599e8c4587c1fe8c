"""One underlying prompt with its good answer: what every corpus is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Exchange:
    """One underlying prompt (`group` names it, unique) with its good answer.

    Attributes:
        names_remarks: Whether, by the corpus's convention, a good answer begins by naming the remark that it was given
            (see `remarks`).
        exploitable: The answer of a model that writes vulnerable code; None in corpora without code.
    """

    group: str
    family: str
    prompt: str
    answer: str
    names_remarks: bool = True
    exploitable: str | None = None

    def good_answer(self, remark_name: str | None = None) -> str:
        """The good answer under a remark of this name, or under none."""
        if remark_name is None or not self.names_remarks:
            return self.answer
        return f"{remark_name}: {self.answer}" if self.exploitable is None else f"# {remark_name}\n{self.answer}"
