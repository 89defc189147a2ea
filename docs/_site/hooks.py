"""Hooks of the documentation site: pages from the repository's root, links out of `docs/`, formulas without scripts."""

import re
import sys
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).parents[2]
#: Pages that stand in the repository's root, where its readers look for them.
_FROM_ROOT = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()#\s:]+)(#[^()\s]*)?\)")
_FORMULA = re.compile(r'<(div|span) class="arithmatex">(.*?)</\1>', re.DOTALL)
_PAGE_LINK = re.compile(r'href="([^":#]+)\.md(?=["#])')
_REGISTRY_LINE = re.compile(r"^from (medloss\.(\w+?)s?\.\w+) import (\w+) as", re.MULTILINE)


def on_config(config: Any) -> None:
    """The page of commands names a module next to this one."""
    sys.path.insert(0, str(Path(__file__).parent))


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from the root."""
    for name, page in _FROM_ROOT.items():
        files.append(File.generated(config, page, abs_src_path=str(_ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to what the site does not have become links to the repository if its address is known, else text."""
    source = Path(page.file.abs_src_path).resolve()
    shown = [file for file in files if file.inclusion.is_included()]
    pages = {str(Path(config.docs_dir).resolve() / file.src_uri): file.src_uri for file in shown}
    pages |= {str(_ROOT / name): uri for name, uri in _FROM_ROOT.items()}

    def rewritten(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = (source.parent / target).resolve()
        if (uri := pages.get(str(path))) is not None:
            return f"[{text}]({'../' * page.file.src_uri.count('/')}{uri}{anchor})"
        if not path.exists():
            return match[0]  # a dead link, which the strict build reports
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path.relative_to(_ROOT)}{anchor})"
        return text

    markdown = _LINK.sub(rewritten, markdown)
    return markdown.replace("<!-- every loss -->", _every_loss())


def _every_loss() -> str:
    """A directive of mkdocstrings per loss of the registry, by family."""
    lines: list[str] = []
    registry = (_ROOT / "medloss" / "registry.py").read_text("utf-8")
    for module, family, name in _REGISTRY_LINE.findall(registry):
        if (heading := f"\n## {family.capitalize()}\n") not in lines:
            lines.append(heading)
        lines.insert(_end_of(lines, heading), f"\n::: {module}.{name}\n    options: {{members: []}}\n")
    return "\n".join(lines)


def _end_of(lines: list[str], heading: str) -> int:
    after = lines.index(heading) + 1
    return next((at for at in range(after, len(lines)) if lines[at].startswith("\n## ")), len(lines))


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Formulas as MathML, which browsers draw by themselves: no script, nothing from elsewhere.

    In notebooks also the links between pages, which only Markdown's are changed by themselves.
    """
    if page.file.src_uri.endswith(".ipynb"):
        html = _PAGE_LINK.sub(lambda match: f'href="{match[1].replace("README", "index")}.html', html)

    def drawn(match: re.Match[str]) -> str:
        formula = unescape(re.sub(r"^\s*\\[\[(]|\\[\])]\s*$", "", unescape(match[2]).strip())).strip()
        display = "block" if match[1] == "div" else "inline"
        return f"<{match[1]}>{convert(formula, display=display)}</{match[1]}>"

    return _FORMULA.sub(drawn, html)
