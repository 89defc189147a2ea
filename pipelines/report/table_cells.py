"""The cells of a table in a text file: its encoding, its separator, its rows."""

import csv
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipelines.utils import UserError

#: What may separate columns.
_SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas"}


@dataclass(frozen=True)
class Cells:
    """The cells of a file, as text.

    Attributes:
        header: names of the columns; empty for an index without a name.
        rows: rows of the same length.
        remarks: what was special about the file.
    """

    header: list[str]
    rows: list[list[str]]
    remarks: tuple[str, ...] = ()

    def column(self, place: int) -> list[str]:
        """The cells of one column."""
        return [row[place] for row in self.rows]


def read_cells(path: Path) -> Cells:
    """Read a table separated by commas, semicolons or tabs.

    Raises:
        UserError: there is no such file, it is no text, or its rows have different numbers of columns.
    """
    text, remarks = _decoded(path)
    lines = text.splitlines(keepends=True)
    if lines and re.fullmatch(r'"?sep=(.)"?\s*', lines[0]):  # of Excel
        lines = lines[1:]
    parsed = {mark: _rows(lines, mark) for mark in _SEPARATORS}
    if not any(parsed.values()):
        raise UserError(f"{path}: cannot be read as a CSV table: it is empty")
    even = [mark for mark, rows in parsed.items() if len(rows[0]) > 1 and len({len(row) for row in rows}) == 1]
    if len(even) > 1:
        either = " or ".join(_SEPARATORS[mark] for mark in even)
        raise UserError(
            f"{path}: its columns may be separated by {either}; expected quotes around text with such marks"
        )
    mark = even[0] if even else max(_SEPARATORS, key=lambda mark: len(parsed[mark][0]))
    header, *rows = parsed[mark]
    header = [cell.strip() for cell in header]
    if not even:
        rows, header = _repaired(path, header, rows, mark)
    named = [place for place in range(len(header)) if header[place] or any(row[place] for row in rows)]
    header, rows = [header[place] for place in named], [[row[place].strip() for place in named] for row in rows]
    repeated = [name for name, count in Counter(header).items() if name and count > 1]
    if repeated:
        raise UserError(f"{path}: column {repeated[0]}: repeated; expected it once")
    if mark != ",":
        remarks = (*remarks, f"separated by {_SEPARATORS[mark]}")
    return Cells(header, rows, remarks)


def _decoded(path: Path) -> tuple[str, tuple[str, ...]]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a CSV table with columns case, loss and dice") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a CSV table: {error.strerror}") from None
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    for encoding, name in (("utf-16", "UTF-16"),) if wide else (("utf-8-sig", ""), ("cp1252", "Windows-1252")):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text, ((name,) if name else ())
    raise UserError(f"{path}: cannot be read as a CSV table: it is no text")


def _rows(lines: list[str], mark: str) -> list[list[str]]:
    try:
        rows = list(csv.reader(lines, delimiter=mark, skipinitialspace=mark != "\t"))
    except csv.Error:
        return []
    return [row for row in rows if any(cell.strip() for cell in row)]


def _repaired(path: Path, header: list[str], rows: list[list[str]], mark: str) -> tuple[list[list[str]], list[str]]:
    """A header without a name for R's row names, which no separated table of commas may leave out."""
    if rows and mark != "," and all(len(row) == len(header) + 1 for row in rows):
        return rows, ["", *header]
    if len(header) < 2:
        raise UserError(f"{path}: cannot be read as a CSV table: it has one column, {header[0]}")
    number, row = next((number, row) for number, row in enumerate(rows, 2) if len(row) != len(header))
    hint = ""
    if mark == "," and any(re.fullmatch(r"\d+", cell.strip()) for cell in row) and len(row) > len(header):
        hint = "; if numbers have decimal commas, separate columns by semicolons or tabs"
    raise UserError(
        f"{path}: cannot be read as a CSV table: row {number} has {len(row)} cells, and the header {len(header)}{hint}"
    )
