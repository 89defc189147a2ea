"""Text on the terminal: progress bars, durations, counts, lists and aligned lines."""

import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

# Progress: a bar is passed to the function that does the work, which prints nothing by itself.

#: Creates a progress bar from its name and its number of steps; the bar is called with the number of steps done since.
Bar = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]


def no_bar(name: str, total: int) -> AbstractContextManager[Callable[[int], object]]:
    """Show nothing."""
    return nullcontext(lambda number: None)


@contextmanager
def terminal_bar(name: str, total: int, unit: str = "file") -> Iterator[Callable[[int], object]]:
    """A progress bar while the block runs, if stderr is a terminal."""
    from tqdm import tqdm

    with tqdm(total=total, desc=name, unit=unit, leave=False, disable=None) as bar:
        yield bar.update


@contextmanager
def terminal_note(text: str) -> Iterator[None]:
    """An animated line while the block runs, if stderr is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status(text) if console.is_terminal else nullcontext():
        yield


# Wording.


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def shown(path: str | Path) -> str:
    """A path as one line: untrusted file names can contain line breaks and control characters."""
    return str(path) if str(path).isprintable() else ascii(str(path))


# Aligned paragraphs, no wider than a terminal.

_WIDTH = 100
_LABEL = 10


def item(label: str, text: str) -> Iterator[str]:
    """Lines of a labelled paragraph; without a label it continues the previous one."""
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
