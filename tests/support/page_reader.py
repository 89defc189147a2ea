"""Reads a report's page without a browser, and checks that it needs nothing but itself."""

import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

from pipelines.report.page import SCRIPT

_VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Reads a page: text, elements, ids and attributes; every element has to be closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.pieces: list[str] = []
        self.feed(text.replace("<wbr>", ""))  # where a name may break, and is one word
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href", "srcset", "action", "data"):
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.pieces.append(data)


def read_page(page: Path, *, script: bool = True) -> Page:
    """Read a page, and check that it needs nothing but itself, and that its links lead to files that are there."""
    text = page.read_text()
    read = Page(text)
    assert "link" not in read.tags and "iframe" not in read.tags
    # Its one script, if it has any, is ours, and the browser runs no other.
    scripts = [SCRIPT] if script else []
    assert re.findall(r"<script[^>]*>(.*?)</script", text, re.DOTALL | re.IGNORECASE) == scripts
    assert (f"script-src 'sha256-{b64encode(sha256(SCRIPT.encode()).digest()).decode()}'\"" in text) == script
    assert read.tags.count("script") == len(scripts)
    assert len(set(read.ids)) == len(read.ids)
    inside = [link for link in read.links if not link.startswith("data:image/png;base64,")]
    for link in inside:
        if link.startswith("#"):
            assert link[1:] in read.ids, link
        else:
            assert (page.parent / unquote(link)).resolve().is_relative_to(page.parent.resolve()), link
            assert (page.parent / unquote(link)).is_file(), link
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(read.ids)
    assert not re.search(r"url\((?!#)|@import", text)
    return read
