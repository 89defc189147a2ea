"""Which classes are measured: labels, regions that are unions of labels, and the label that is not counted."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import UserError

#: What nnU-Net calls the label of voxels that nobody labelled.
IGNORE = "ignore"
_EXPECTED = "expected labels with names, as 1=anterior,2=posterior, or a union, as 1+2=whole"


@dataclass(frozen=True)
class Classes:
    """What is measured.

    Attributes:
        regions: a class's name -> its label values; of several the union counts, as of nnU-Net's regions.
        ignore: the value of voxels that are not counted, if there is one. Where the reference has it, both maps count
            as nothing, neither foreground nor background, as in nnU-Net's evaluation; so surfaces end there in both.
    """

    regions: dict[str, tuple[int, ...]]
    ignore: int | None = None

    @property
    def values(self) -> tuple[int, ...]:
        """What a prediction may hold: 0 and the classes' values, rising."""
        return tuple(sorted({0}.union(*self.regions.values())))

    def told(self) -> str:
        """As `--classes` takes them; names that are their values once."""
        labels = {name: "+".join(map(str, values)) for name, values in self.regions.items()}
        parts = [name if name == label else f"{label}={name}" for name, label in labels.items()]
        return ", ".join(parts + ([] if self.ignore is None else [f"{self.ignore}={IGNORE}"]))


def read_classes(text: str) -> Classes:
    """The classes of a list such as `1=anterior,2=posterior`, `1+2=whole,2=core` or `1=organ,2=ignore`.

    Raises:
        UserError: it is no such list.
    """
    named: dict[str, tuple[int, ...]] = {}
    for part in text.split(","):
        values, separator, name = (piece.strip() for piece in part.partition("="))
        numbers = [number.strip() for number in values.split("+")]
        whole = all(number.isascii() and number.isdecimal() and int(number) > 0 for number in numbers)
        if not (separator and name and name.isprintable() and whole):
            raise UserError(f"--classes: got '{part.strip()}'; {_EXPECTED}, whole numbers above 0")
        if name in named:
            raise UserError(f"--classes: '{name}' comes twice; expected a name of its own for each class")
        named[name] = tuple(dict.fromkeys(map(int, numbers)))
    return _checked(named, "--classes")


def dataset_classes(content: dict[str, Any], path: Path) -> Classes:
    """The classes of an nnU-Net's `dataset.json`: labels, or regions, in its order; background left out.

    Args:
        content: the file's.
        path: where it lies, for the message.

    Raises:
        UserError: its labels are not as nnU-Net wants them.
    """
    labels = content.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise UserError(f"{path}: has no labels; expected nnU-Net's, or pass --classes")
    named: dict[str, tuple[int, ...]] = {}
    for name, given in labels.items():
        values = given if isinstance(given, list) else [given]
        if not values or not all(isinstance(value, int) and value >= 0 for value in values):
            raise UserError(
                f"{path}: labels: got {given!r} for '{name}'; expected a whole number, or several as a region, as "
                "nnU-Net's version 2 has them; or pass --classes"
            )
        if set(values) != {0}:
            named[name] = tuple(dict.fromkeys(values))
    return _checked(named, f"{path}: labels")


def _checked(named: dict[str, tuple[int, ...]], where: str) -> Classes:
    ignore = named.pop(IGNORE, None)
    if not named:
        raise UserError(f"{where}: got no class; {_EXPECTED}")
    if ignore is None:
        return Classes(named)
    if len(ignore) > 1 or ignore[0] in set().union(*named.values()):
        raise UserError(f"{where}: the label called {IGNORE} is one value, which no class has; got {ignore}")
    return Classes(named, ignore[0])
