"""The picture of the packages follows the code, and its page describes every package and names what exists."""

import re
from pathlib import Path

import pytest

import medloss

architecture = pytest.importorskip(
    "benchmarks.architecture", reason="needs benchmarks/, and grimp, which import-linter brings"
)
CURRENT = architecture.read_architecture()
PAGE = architecture.PAGE.read_text()
PICTURE = architecture.PICTURE.read_text()


def _without_counts(svg: str) -> str:
    return re.sub(r"\d+ modules", "modules", svg)


def test_the_picture_shows_the_imports_of_the_code() -> None:
    drawn = architecture.draw(CURRENT, architecture.read_captions(PAGE))
    assert _without_counts(drawn) == _without_counts(PICTURE), "run `make architecture`"


def test_the_picture_counts_the_modules() -> None:
    # A new loss is one file and one line, and needs no new picture; but the numbers must not go stale.
    counts = dict(re.findall(r">(\w+)</tspan><tspan class=\"modules\".*?>(\d+) modules", PICTURE))
    off = {
        room: (count, CURRENT.modules[room])
        for room, count in counts.items()
        if abs(int(count) - CURRENT.modules[room]) > max(2, CURRENT.modules[room] // 10)
    }
    assert counts.keys() == CURRENT.modules.keys()
    assert not off, "run `make architecture`"


def test_every_package_is_on_the_page_and_in_a_layer() -> None:
    rooms = [room for layer in CURRENT.layers for room in layer]
    assert sorted(rooms) == sorted(CURRENT.modules)
    assert architecture.read_captions(PAGE).keys() == set(rooms)


def test_imports_run_downwards() -> None:
    row = {room: index for index, layer in enumerate(CURRENT.layers) for room in layer}
    assert [edge for edge in CURRENT.imports if row[edge[0]] >= row[edge[1]]] == []


def test_contributing_names_the_layers() -> None:
    rules = " ".join((Path(__file__).parents[2] / "CONTRIBUTING.md").read_text().split())
    assert ": " + " > ".join(", ".join(layer) for layer in CURRENT.layers) + "." in rules


def test_arrows_leave_out_what_others_imply() -> None:
    small = architecture.Architecture(
        (("a",), ("b",), ("c",), ("u",), ("medloss",)),
        dict.fromkeys(("a", "b", "c", "u", "medloss"), 1),
        frozenset({("a", "b"), ("b", "c"), ("a", "c"), ("a", "u"), ("b", "u"), ("c", "u"), ("a", "medloss")}),
        (),
    )
    assert small.shared == ["u"]
    assert small.arrows == [("a", "b"), ("a", "medloss"), ("b", "c")]


@pytest.mark.parametrize("row", re.findall(r"^\| .*?\| `([\w/.]+\.py)` \| (.*?) ?\|$", PAGE, re.MULTILINE))
def test_what_the_page_names_exists(row: tuple[str, str]) -> None:
    path, names = row
    text = (Path(medloss.__file__).parents[1] / path).read_text()
    for name in re.findall(r"`(\w+)`", names):
        assert re.search(rf"^(def|class) {name}\b", text, re.MULTILINE), f"{path} has no {name}"
