"""Text for people: progress on a terminal, durations, counts, lists and aligned lines."""

import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

# How far a long work is: what shows it is handed to the work, which by itself prints nothing.

#: Makes a progress bar of so many steps, called so; it gives what is told how many more are done.
Bar = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]


def no_bar(name: str, total: int) -> AbstractContextManager[Callable[[int], object]]:
    """Show nothing."""
    return nullcontext(lambda number: None)


@contextmanager
def terminal_bar(name: str, total: int, unit: str = "file") -> Iterator[Callable[[int], object]]:
    """A bar on the terminal while the block runs; nothing where stderr is none."""
    from tqdm import tqdm

    with tqdm(total=total, desc=name, unit=unit, leave=False, disable=None) as bar:
        yield bar.update


@contextmanager
def terminal_note(text: str) -> Iterator[None]:
    """A line that moves on the terminal while the block runs; nothing where stderr is none."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status(text) if console.is_terminal else nullcontext():
        yield


# Seconds as people say them.


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


# How the planning is printed: labelled, aligned, and no wider than a terminal.

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
