"""What a loss's class says of itself: formula, remarks and arguments, read from its docstring and signature."""

import inspect
import re
from dataclasses import dataclass

from medloss.base import CommonArguments
from medloss.entry import LossEntry

_SECTION = re.compile(r"^(Args|Raises|References|Example|Examples|Returns|Attributes|Note):\s*$", re.MULTILINE)
_FORMULA = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
_INLINE = re.compile(r"(?<!\$)\$([^$]+)\$(?!\$)")
_ARGUMENT = re.compile(r"^ {4}(\w+): (.*)$")


@dataclass(frozen=True)
class Argument:
    """One argument of a loss's own: its name, its default as Python writes it, and what the docstring says of it."""

    name: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Description:
    """A class's docstring, taken apart.

    Attributes:
        headline: the first sentence.
        formula: TeX without the dollar signs; empty where the docstring has none.
        remarks: the paragraphs between headline and the first section, Markdown, without the formula.
        arguments: the loss's own ones; every loss takes the common ones besides.
    """

    headline: str
    formula: str
    remarks: str
    arguments: tuple[Argument, ...]


def describe(entry: LossEntry) -> Description:
    """Read a registered loss's docstring and signature."""
    text = inspect.getdoc(entry.cls) or ""
    first = _SECTION.search(text)
    body = text[: first.start()] if first else text
    headline, _, rest = body.partition("\n\n")
    formula = _FORMULA.search(rest)
    remarks = rest if formula is None else f"{rest[: formula.start()].rstrip()}\n\n{rest[formula.end() :].lstrip()}"
    return Description(
        headline=" ".join(headline.split()),
        formula=formula[1].strip() if formula else "",
        # Between backticks GitHub leaves TeX's backslashes alone.
        remarks=_INLINE.sub(r"$`\1`$", remarks.strip()),
        arguments=_own_arguments(entry, _meanings(text)),
    )


def paper_links(paper: str) -> str:
    """A paper as Markdown, its arXiv number and DOI as links."""
    linked = re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)
    return re.sub(r"doi (10\.\S+)", r"[doi \1](https://doi.org/\1)", linked)


def _own_arguments(entry: LossEntry, meanings: dict[str, str]) -> tuple[Argument, ...]:
    return tuple(
        Argument(p.name, "required" if p.default is p.empty else _short(p.default), meanings.get(p.name, ""))
        for p in inspect.signature(entry.cls).parameters.values()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in CommonArguments.__annotations__
    )


def _short(default: object) -> str:
    return f"{default:.6g}" if isinstance(default, float) and not default.is_integer() else repr(default)


def _meanings(text: str) -> dict[str, str]:
    """The `Args` section: name to text, on one line."""
    meanings: dict[str, str] = {}
    name = ""
    for line in text.partition("\nArgs:\n")[2].splitlines():
        if line and not line.startswith(" "):
            break
        if line.startswith("    **"):
            name = ""
        elif found := _ARGUMENT.match(line):
            name = found[1]
            meanings[name] = found[2]
        elif name and line.strip():
            meanings[name] += f" {line.strip()}"
    return meanings
