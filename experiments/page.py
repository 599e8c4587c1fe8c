"""The page of an experiment, in Markdown: claim against finding first, then figure, tables, method and how to repeat it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from ..models.organisms.tables import markdown
from ..untrusted import coded, in_markdown
from .experiment import Answer, Experiment, Findings, Setting

HEADER = ("published", "here, with 95% intervals", "")


def page(
    name: str,
    experiment: Experiment,
    findings: Findings,
    setting: Setting,
    failed: Sequence[str],
    manifest: dict[str, Any],
) -> str:
    """Ends with a newline."""
    parts = [
        f"# {experiment.TITLE}\n",
        markdown((HEADER, [_row(answer) for answer in findings.answers])),
        f"![{experiment.TITLE}]({name}.png)\n",
    ]
    for caption, table in findings.tables.items():
        parts += [f"## {caption}\n", markdown(table)]
    parts += [in_markdown(remark) + "\n" for remark in findings.remarks]
    if failed:
        parts += ["Could not be measured:\n", *(f"- {in_markdown(one)}\n" for one in failed)]
    parts += ["Brackets hold 95% intervals, exact ones for shares; parentheses the range over organisms.\n"]
    parts += ["## How it was measured\n", inspect.cleandoc(experiment.__doc__ or "") + "\n"]
    parts += ["## How the verdicts follow, and what would settle them\n"]
    parts += [
        f"- *{answer.claim.says}* {_ended(answer.rule)} To settle it: {answer.settle}.\n" for answer in findings.answers
    ]
    parts += [_made(setting, manifest)]
    return "\n".join(parts)


def _row(answer: Answer) -> tuple[str, str, str]:
    said = f"**{answer.verdict}**" + (" at this scale" if answer.verdict == "cannot tell" else "")
    return f"{answer.claim.says} ({answer.claim.source})", answer.ours, said


def _ended(rule: str) -> str:
    return f"{rule[0].upper()}{rule[1:]}."


def _made(setting: Setting, manifest: dict[str, Any]) -> str:
    """How the page came about; `said` where it was not one run that made it."""
    if "said" in manifest:
        return manifest["said"] + "\n"
    minutes = manifest["seconds"] / 60
    versions = ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
    size = "" if setting.size == "full" else f" The `{setting.size}` size shows that it runs; its figures are few."
    return (
        f"Made by {coded(manifest['command'])} in {minutes:.0f} min of wall time with {manifest['jobs']} processes on "
        f"{manifest['cores']} cores, less what other experiments had grown already ({versions}).{size}\n"
    )
