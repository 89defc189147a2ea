"""The README: its Python runs, it lists every loss, and it is short. `test_docs.py` checks what all pages name."""

import re
from pathlib import Path

import pytest

from medloss.names import loss_names

_README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def readme() -> str:
    return _README.read_text(encoding="utf-8")


def _blocks(text: str, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)  # from fence to fence, in turn
    return [block for name, block in fenced if name == language]


def test_python_runs(readme: str) -> None:
    blocks = _blocks(readme, "python")
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_every_loss_is_listed_once(readme: str) -> None:
    rows = re.findall(r"^\| (?:distribution|region|boundary|compound|wrapper) \| (.*) \|$", readme, re.MULTILINE)
    listed = re.findall(r"`(\w+)`", " ".join(rows))
    assert sorted(listed) == sorted(loss_names())


def test_it_is_short(readme: str) -> None:
    assert len(readme.splitlines()) <= 175
