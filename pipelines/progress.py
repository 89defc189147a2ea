"""How far a long work is: what shows it is handed to the work, which by itself prints nothing."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

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
