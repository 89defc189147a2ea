"""The README: its Python runs, its commands exist with these options, its files are there, and it is short."""

import re
import shlex
from pathlib import Path

import click
import pytest

from medloss.names import loss_names
from pipelines.cli import medloss

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


def _options(name: str) -> set[str]:
    command = medloss.get_command(click.Context(medloss), name)
    assert command is not None, name
    return {flag for parameter in command.params for flag in parameter.opts}


def test_commands_exist_with_these_options(readme: str) -> None:
    lines = [line.partition("#")[0] for block in _blocks(readme, "") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("medloss ")]
    commands += [shlex.split(code)[1:] for code in re.findall(r"`(medloss [a-z]+[^`]*)`", readme)]
    assert {command[0] for command in commands} >= {"manifest", "check", "compare", "report"}
    for name, *arguments in commands:
        flags = {argument for argument in arguments if argument.startswith("--")}
        assert flags <= _options(name), (name, arguments)
    known = set().union(*map(_options, medloss.list_commands(click.Context(medloss))))
    assert set(re.findall(r"`(--[a-z-]+)", readme)) <= known


def test_commands_of_make_exist(readme: str) -> None:
    makefile = _README.with_name("Makefile")
    if not makefile.is_file():
        pytest.skip("the Makefile does not travel with the tests")
    targets = re.findall(r"^([a-z-]+):", makefile.read_text(), re.MULTILINE)
    assert set(re.findall(r"\bmake ([a-z-]+)", readme)) <= set(targets)


def test_every_loss_is_listed_once(readme: str) -> None:
    rows = re.findall(r"^\| (?:distribution|region|boundary|compound|wrapper) \| (.*) \|$", readme, re.MULTILINE)
    listed = re.findall(r"`(\w+)`", " ".join(rows))
    assert sorted(listed) == sorted(loss_names())


def test_links_lead_to_files(readme: str) -> None:
    if not _README.with_name("docs").is_dir():
        pytest.skip("docs do not travel with the wheel")
    for link in re.findall(r"\]\(([^)#]+)", readme):
        if "://" not in link and link != "CITATION.cff":
            assert (_README.parent / link).exists() or link in ("CHANGELOG.md", "CONTRIBUTING.md"), link


def test_it_is_short(readme: str) -> None:
    assert len(readme.splitlines()) <= 175
