"""The list of faults fits the code, and its runner reports what tests do with them."""

from pathlib import Path

import pytest

import medloss

# It belongs to the checkout, not to the wheel. `python -m pytest` finds it in the folder where it was started.
mutants = pytest.importorskip("benchmarks.mutants", reason="benchmarks/ is not here: these tests run in the checkout")

_SOUND = "def half(number):\n    return number / 2\n"
_TEST = "from halves import half\n\ndef test_half():\n    assert half(6) == 3\n"


def _mutant(name: str, new: str, old: str = "/ 2") -> "mutants.Mutant":
    return mutants.Mutant(name, "halves.py", "a fault", old, new, ("tests/test_halves.py",))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tiny checkout."""
    tree = tmp_path / "tree"
    (tree / "tests").mkdir(parents=True)
    (tree / "halves.py").write_text(_SOUND)
    (tree / "tests" / "test_halves.py").write_text(_TEST)
    return tree


def test_every_row_applies_to_the_code(tmp_path: Path) -> None:
    # The tests may run next to an installed wheel, away from the checkout.
    installed = Path(medloss.__file__).parents[1]
    for name, place in (("medloss", installed), ("pipelines", installed), ("tests", Path(__file__).parents[2])):
        (tmp_path / name).symlink_to(place / name)
    rows = mutants.read_mutants()
    assert mutants.problems(rows, tmp_path) == []
    assert len(rows) >= 60


def test_rows_that_do_not_fit_are_named(tree: Path) -> None:
    rows = [_mutant("one", "/ 3"), _mutant("one", "/ 2"), _mutant("two", "/", old="number"), _mutant("three", "/ (")]
    found = mutants.problems(rows, tree)
    assert [line.split(":")[0] for line in found] == ["one", "one", "two", "three"]
    assert "occurs 2 times in halves.py" in found[2]
    assert "does not compile" in found[3]


def test_killed_survived_and_timed_out(tree: Path) -> None:
    killed = mutants.try_mutant(_mutant("third", "/ 3"), tree)
    assert (killed.outcome, killed.by, killed.test) == ("killed", "named", "tests/test_halves.py::test_half")
    survived = mutants.try_mutant(_mutant("same", "* 0.5"), tree, whole=True)
    assert (survived.outcome, survived.by) == ("survived", "whole")
    endless = mutants.try_mutant(_mutant("endless", "while True: pass", old="return number / 2"), tree, timeout_s=2)
    assert (endless.outcome, endless.test) == ("killed", "timeout")
    assert (tree / "halves.py").read_text() == _SOUND
