"""The documentation site: it builds strictly, links and anchors are there, and it needs nothing from elsewhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import medloss

#: Tests of the wheel run away from the checkout, from which the site is built.
ROOT = Path(os.environ.get("MEDLOSS_CHECKOUT") or Path(__file__).parents[2])
PAGES = ROOT / "docs"


class _Page(HTMLParser):
    """The links, resources and anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.resources: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if (tag == "link" and found.get("rel") in ("stylesheet", "icon")) or (
            tag in ("script", "img") and "src" in found
        ):
            self.resources.append(found.get("href") or found["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, _Page]:
    """Every page of the built site."""
    pytest.importorskip("mkdocs", reason="mkdocs is not here: make docs installs it")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", str(ROOT / "mkdocs.yml"), "-d"]
    # Whatever asks for something from elsewhere fails.
    offline = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [*command, str(folder)], cwd=folder, capture_output=True, text=True, timeout=600,
        env=os.environ | offline | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return {path: _Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}


@pytest.mark.slow
def test_no_link_is_dead(site: dict[Path, _Page]) -> None:
    assert len(site) > 60
    dead = []
    for path, page in site.items():
        if path.name == "404.html":
            continue  # its links begin at the server's root
        for link in [*page.links, *page.resources]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                dead.append(f"{path.name}: {link}")
            elif parts.fragment and target in site and unquote(parts.fragment) not in site[target].anchors:
                dead.append(f"{path.name}: {link}: no such anchor")
    assert dead == []


@pytest.mark.slow
def test_nothing_comes_from_elsewhere(site: dict[Path, _Page]) -> None:
    assert [link for page in site.values() for link in page.resources if urlsplit(link).netloc] == []


@pytest.mark.slow
def test_the_reference_has_every_loss_and_command(site: dict[Path, _Page]) -> None:
    from pipelines.cli import COMMANDS

    anchors = {path.stem: page.anchors for path, page in site.items() if path.parent.name == "reference"}
    classes = {f"{entry.cls.__module__}.{entry.cls.__name__}" for entry in medloss.LOSSES.values()}
    assert classes <= anchors["losses"]
    assert {f"medloss-{name}" for name in COMMANDS} <= anchors["commands"]


@pytest.mark.slow
def test_formulas_are_drawn(site: dict[Path, _Page]) -> None:
    folder = next(path.parent for path in site if path.name == "README.html" or path.name == "index.html")
    text = (folder / "losses" / "dice.html").read_text(encoding="utf-8")
    assert "<math" in text
    pages = [path.name for path in site if 'class="arithmatex"' in path.read_text(encoding="utf-8")]
    assert pages == []


def test_the_recipes_page_names_every_sum() -> None:
    text = (PAGES / "recipes.md").read_text(encoding="utf-8")
    for name, entry in medloss.LOSSES.items():
        if entry.recipe.expression and entry.recipe.schedule == "constant":
            assert f"| `{name}` | `{entry.recipe.expression}` |" in text
        elif entry.recipe.expression:
            assert f"`{name}`" in text


def test_every_page_is_in_the_index() -> None:
    """`docs/README.md` and the site's navigation lead to the same pages."""
    index = set(re.findall(r"\]\(([\w./]+\.(?:md|ipynb))\)", (PAGES / "README.md").read_text(encoding="utf-8")))
    navigation = set(re.findall(r": ([\w/]+\.(?:md|ipynb))$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    at_root = {"../CONTRIBUTING.md": "contributing.md", "../CHANGELOG.md": "changelog.md"}
    named = {at_root.get(page, page) for page in index}
    assert navigation - named == {"README.md"}
    assert named <= navigation
    assert [page for page in index if not (PAGES / page).is_file() and page not in at_root] == []


@pytest.mark.slow
def test_the_tutorials_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nbclient", reason="nbclient is not here: make docs installs it")
    monkeypatch.syspath_prepend(PAGES / "_site")
    import nbformat
    import notebooks

    paths = sorted(notebooks.FOLDER.glob("*.ipynb"))
    assert len(paths) == 2
    for path in paths:
        kept = nbformat.read(path, as_version=4)
        for before, now in zip(kept.cells, notebooks.executed(path).cells, strict=True):
            if before.cell_type == "code":
                assert bool(before.outputs) == bool(now.outputs), before.source
