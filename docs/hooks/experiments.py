"""Brings in the pages that experiments write as they come, in the order in which `experiments/index.md` links to them.

A page that is there is added to the navigation. One that is not there yet is named without a link.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page

INDEX = "experiments/index.md"
_LINK = re.compile(r"\[(?P<name>[^\]]+)\]\((?P<page>[a-z-]+\.md)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    index = Path(config.docs_dir, INDEX)
    links = [
        link for link in _LINK.finditer(index.read_text(encoding="utf-8")) if index.with_name(link["page"]).exists()
    ]
    (section,) = (entry["Experiments"] for entry in config.nav or () if "Experiments" in entry)
    section += [{link["name"].replace("-", " ").capitalize(): f"experiments/{link['page']}"} for link in links]
    return config


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_) -> str:
    if page.file.src_uri != INDEX:
        return markdown
    index = Path(config.docs_dir, INDEX)
    return _LINK.sub(lambda link: link[0] if index.with_name(link["page"]).exists() else link["name"], markdown)
