"""How the planning is printed: labelled, aligned, and no wider than a terminal."""

import textwrap
from collections.abc import Iterator

_WIDTH = 100
_LABEL = 10


def item(label: str, text: str) -> Iterator[str]:
    """A labelled paragraph; without a label it goes on with the one before."""
    yield from textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"{label:<{_LABEL}}",
        subsequent_indent=" " * _LABEL,
        break_long_words=False,
        break_on_hyphens=False,
    )


def counted(count: int, noun: str) -> str:
    """`1 loss`, `2 losses`."""
    plural = f"{noun}es" if noun in ("loss", "patch") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"


def listed(noun: str, numbers: tuple[int, ...] | list[int]) -> str:
    """`fold 0`, `folds 0, 1`."""
    return f"{noun}{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"
