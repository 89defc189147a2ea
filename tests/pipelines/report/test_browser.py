"""The page of the report in a browser: on a screen, on a phone, in dark mode, and on paper."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from browser import Browser, open_browser
from made_pictures import pictured_comparison
from tiny import tiny_manifest

from medloss import LOSSES
from pipelines.report.collect import from_folder
from pipelines.report.write import write_report
from pipelines.runs.plan import DEFAULT_REFERENCE

pytestmark = pytest.mark.slow

#: The luminance of a CSS colour such as `rgb(1, 2, 3)`.
_LIGHTNESS = """
(element, property) => {
  const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = getComputedStyle(element)[property].match(/[\\d.]+/g).map(Number).map(linear);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
"""


@pytest.fixture(scope="module", params=[2, 17], ids=["2 losses", "17 losses"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a report with pictures of cases and, with many losses, a failure."""
    folder = tmp_path_factory.mktemp("report")
    losses = [DEFAULT_REFERENCE, *LOSSES][: request.param]
    many = len(losses) > 2
    manifest = tiny_manifest(folder, cases=9)
    pictured_comparison(
        folder / "c", losses, manifest, folder / "data",
        lambda config: "failed" if many and config.loss == losses[5] else "done",
    )  # fmt: skip
    return write_report(from_folder(folder / "c"), folder / "r", bootstraps=200)[0]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def _load(browser: Browser, page: Path, *, width: int = 1280, dark: bool = False, print_: bool = False) -> None:
    """Load the page with all its pictures, without errors and without requests for other files."""
    browser.resize(width, 800)
    browser.set_media(dark=dark, print_=print_)
    browser.open(page)
    browser.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    browser.evaluate("Promise.all([...document.images].map(one => (one.loading = 'eager', one.decode())))")
    assert browser.console == []
    assert browser.failed == []
    assert browser.requests == [page.resolve().as_uri()]


def _contrast(browser: Browser, selector: str) -> float:
    """The contrast of an element's text with the page by WCAG: 4.5 is enough for small text."""
    text, back = (
        browser.evaluate(f"({_LIGHTNESS})(document.querySelector({chosen!r}), {what!r})")
        for chosen, what in ((selector, "color"), ("body", "backgroundColor"))
    )
    return (max(text, back) + 0.05) / (min(text, back) + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_on_a_screen(browser: Browser, report: Path, width: int, dark: bool) -> None:
    _load(browser, report, width=width, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    # Nothing extends beyond the left border of the page, where nobody can scroll.
    assert browser.evaluate("Math.min(...[...document.body.querySelectorAll('*')].map(e => e.getClientRects().length ?"
                            "e.getBoundingClientRect().left : 0))") >= 0  # fmt: skip
    pictures = browser.evaluate("[...document.images].map(one => [one.naturalWidth, one.clientWidth, one.alt])")
    assert len(pictures) == browser.evaluate("document.querySelectorAll('#cases figure').length") >= 3
    assert all(natural > 900 and 300 < shown <= natural and alt for natural, shown, alt in pictures)
    for selector in ("body", ".note", "h2", "nav a", "dt", "summary", ".verdict", ".answer p"):
        if browser.evaluate(f"!!document.querySelector({selector!r})"):
            assert _contrast(browser, selector) >= 4.5, selector
    back = browser.evaluate(f"({_LIGHTNESS})(document.body, 'backgroundColor')")
    assert back < 0.05 if dark else back > 0.9


def test_links_lead_somewhere(browser: Browser, report: Path) -> None:
    _load(browser, report)
    links = browser.evaluate("[...document.querySelectorAll('[href]')].map(e => e.getAttribute('href')"
                             " || e.getAttribute('xlink:href'))")  # fmt: skip
    assert {"#ranking", "#cases", "#run", "#not_controlled"} <= set(links)
    for link in set(links):
        url = urlparse(link)
        assert not (url.scheme or url.netloc), link
        if url.path:
            assert (report.parent / unquote(url.path)).exists(), link
        if url.fragment:
            assert browser.evaluate(f"!!document.getElementById({url.fragment!r})"), link
    # Followed as by a reader.
    for link in browser.evaluate("[...document.querySelectorAll('nav a')].map(e => e.getAttribute('href'))"):
        browser.click(f"nav a[href='{link}']")
        browser.wait_for(f"location.hash === {link!r}")
        top, page = browser.evaluate(f"[document.querySelector({link!r} + ' h2').getBoundingClientRect().top, 800]")
        assert -1 <= top < page, link
    assert browser.console == [] and browser.requests == [report.resolve().as_uri()]


def test_folded_pictures_open(browser: Browser, report: Path) -> None:
    browser.resize(1280, 800)
    browser.set_media()
    browser.open(report)
    shown = "[...document.images].filter(one => one.checkVisibility()).length"
    before, all_ = browser.evaluate(shown), browser.evaluate("document.images.length")
    if browser.evaluate("!!document.querySelector('#cases summary')"):
        assert before < all_
        browser.click("#cases summary")
    browser.wait_for(f"{shown} === {all_}")


def test_tables_of_cases_are_sorted_by_a_click(browser: Browser, report: Path) -> None:
    browser.resize(1280, 800)
    browser.set_media()
    browser.open(report)
    table = "document.querySelector('#hardest table')"
    column = f"[...{table}.tBodies[0].rows].map(row => row.cells[1].textContent)"
    first = [float(text) for text in browser.evaluate(column)]
    assert first == sorted(first)  # the hardest first, without a click
    for sorted_so, reverse in (("ascending", False), ("descending", True)):
        browser.click("#hardest th:nth-child(2) button")
        assert browser.evaluate(f"{table}.tHead.rows[0].cells[1].getAttribute('aria-sort')") == sorted_so
        assert [float(text) for text in browser.evaluate(column)] == sorted(first, reverse=reverse)
    browser.click("#hardest th:nth-child(1) button")
    names = browser.evaluate(f"[...{table}.tBodies[0].rows].map(row => row.cells[0].textContent)")
    assert names == sorted(names)
    assert browser.console == []


def test_what_is_closed_is_printed(browser: Browser, report: Path) -> None:
    browser.resize(718, 800)
    browser.set_media(print_=True)
    browser.open(report)
    inside = "[...document.querySelectorAll('details:not(.copy) > :not(summary)')]"
    assert browser.evaluate(f"{inside}.length") > 0
    assert browser.evaluate("document.querySelectorAll('details[open]').length") == 0
    assert browser.evaluate(f"{inside}.filter(e => !e.checkVisibility({{contentVisibilityAuto: true}})).length") == 0
    browser.set_media()
    assert browser.evaluate(f"{inside}.filter(e => e.checkVisibility({{contentVisibilityAuto: true}})).length") == 0


def test_on_paper(browser: Browser, report: Path, tmp_path: Path) -> None:
    # A4 without margins, in CSS pixels.
    _load(browser, report, width=718, dark=True, print_=True)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 718
    assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.evaluate(f"({_LIGHTNESS})(document.body, 'backgroundColor')") == 1
    assert _contrast(browser, "body") > 20 and _contrast(browser, ".note") > 7
    # Nothing is cut off, since paper does not scroll.
    assert browser.evaluate("[...document.querySelectorAll('.wide, figure')].filter(e => e.scrollWidth > e.clientWidth"
                            " + 1).map(e => e.outerHTML.slice(0, 200))") == []  # fmt: skip
    written = browser.pdf(tmp_path / "report.pdf").read_bytes()
    assert written.startswith(b"%PDF") and 4 <= written.count(b"/Type /Page\n") <= 40
