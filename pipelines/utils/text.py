"""Text on the terminal: tables, progress bars, durations, counts, lists and aligned lines."""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command imports this module, and does not wait for it
    from rich.console import Console, Group
    from rich.text import Text

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


def abbreviated(items: Iterable[object], most: int = 5) -> str:
    """The first items in one line, such as paths, and the number of others: `a, b and 3 more`."""
    words = [shown(str(item)) for item in items]
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


# Aligned paragraphs, no wider than a terminal.

_WIDTH = 100
_LABEL = 10


def item(label: str, text: str) -> Iterator[str]:
    """Lines of a labelled paragraph; without a label it continues the previous one."""
    yield from textwrap.wrap(
        text, _WIDTH, initial_indent=f"{label:<{_LABEL}}", subsequent_indent=" " * _LABEL,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def counted(count: int, noun: str) -> str:
    """`1 loss`, `2 losses`."""
    plural = f"{noun}es" if noun in ("loss", "class", "patch") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"


def in_words(names: Sequence[str], most: int = 6) -> str:
    """Names as a list in words; of a long list the first ones, and how many more there are."""
    if len(names) > most:
        return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def listed(noun: str, numbers: tuple[int, ...] | list[int]) -> str:
    """`fold 0`, `folds 0, 1`."""
    return f"{noun}{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"


# Tables: text wraps, and columns that do not fit follow below; names and numbers are never cut.

#: Width in characters to which a column of text is narrowed before columns move below.
_MIN_TEXT = 24
_GAP = 2


@dataclass(frozen=True)
class Column:
    """A column's heading and format: right-aligned, as for numbers, or text that may take several lines."""

    heading: str
    right: bool = False
    wraps: bool = False


def numbers(*headings: str) -> list[Column]:
    """Columns of numbers."""
    return [Column(heading, right=True) for heading in headings]


def fitted_table(
    columns: Sequence[Column], rows: "Sequence[Sequence[str | Text]]", width: int, *, title: str = "", keys: int = 1
) -> "Group":
    """A table no wider than the terminal; its cells are strings, or `Text` if they have a colour.

    Columns that do not fit follow in a table below that repeats the first `keys` columns, which name a row, as pandas
    prints a wide frame.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    cells = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    needed = []  # the smallest width of each column
    for place, column in enumerate(columns):
        natural = max(cell.cell_len for cell in [Text(column.heading), *(row[place] for row in cells)])
        needed.append(min(natural, _MIN_TEXT, max(width // 3, 1)) if column.wraps else natural)
    shown: list[Text | Table] = [Text(title, overflow="fold")] if title else []
    parts = _parts(needed, width, keys)
    for part in parts:
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
        # If even a name and a number do not fit, the name is wrapped.
        narrow = _total(needed, part) > width
        for place in part:
            column = columns[place]
            table.add_column(
                Text(column.heading),
                justify="right" if column.right else "left",
                overflow="fold",
                no_wrap=not (column.wraps or (narrow and not column.right)),
                min_width=None if narrow else needed[place],
            )
        for row in cells:
            table.add_row(*(row[place] for place in part))
        shown += [Text(), table] if len(parts) > 1 else [table]
    return Group(*shown)


def _parts(needed: Sequence[int], width: int, keys: int) -> list[list[int]]:
    """Indices of columns that fit side by side; each part has the keys, or only the first key if they are too wide."""
    if any(_total(needed, [*range(keys), place]) > width for place in range(keys, len(needed))):
        keys = 1
    parts = [list(range(keys))]
    for place in range(keys, len(needed)):
        if len(parts[-1]) > keys and _total(needed, [*parts[-1], place]) > width:
            parts.append(list(range(keys)))
        parts[-1].append(place)
    return parts


def _total(needed: Sequence[int], part: Sequence[int]) -> int:
    return sum(needed[place] for place in part) + _GAP * (len(part) - 1)


def print_table(
    columns: Sequence[Column],
    rows: "Sequence[Sequence[str | Text]]",
    *,
    title: str = "",
    keys: int = 1,
    console: "Console | None" = None,
) -> None:
    """Print a table as wide as the terminal; in a pipe or a file, one line per row. Arguments as of `fitted_table`."""
    from rich.console import Console

    console = console or Console()
    if console.is_terminal:
        console.print(fitted_table(columns, rows, console.width, title=title, keys=keys))
    else:
        console.file.writelines(f"{line}\n" for line in table_lines(columns, rows, title=title, console=console))


def table_lines(
    columns: Sequence[Column],
    rows: "Sequence[Sequence[str | Text]]",
    *,
    title: str = "",
    console: "Console | None" = None,
) -> list[str]:
    """The lines that `print_table` prints, without colours."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    width = console.width
    if not console.is_terminal:  # the title and each row in one line
        lines = [[column.heading for column in columns], *rows]
        widest = (max(Text(str(cell)).cell_len for cell in place) for place in zip(*lines, strict=True))
        width = max(sum(widest) + _GAP * len(columns), Text(title).cell_len)
    plain = Console(width=width, color_system=None, force_terminal=False)
    with plain.capture() as capture:
        plain.print(fitted_table(columns, rows, width, title=title))
    return [line.rstrip() for line in capture.get().splitlines()]
