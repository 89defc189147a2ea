"""The results' file: rows a group, with the machine and the date; a later run replaces the groups that it measured."""

import dataclasses
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.cases import Row, row_from_json
from benchmarks.machine import describe
from pipelines.utils.files import read_json, write_text


@dataclass(frozen=True)
class Group:
    """The rows of one group, and where and when they were measured."""

    rows: list[Row]
    machine: dict[str, str]
    date: str


def measured_now(rows: list[Row], device: str) -> Group:
    """A group that was measured here, today."""
    return Group(rows, describe(device), datetime.now(UTC).strftime("%Y-%m-%d"))


def read_results(path: Path) -> dict[str, Group]:
    """Group name to group; nothing where there is no file."""
    data: dict[str, Any] = read_json(path) or {}
    return {
        name: Group([row_from_json(row) for row in group["rows"]], group["machine"], group["date"])
        for name, group in data.items()
    }


def write_results(path: Path, groups: dict[str, Group]) -> None:
    """Write all groups, a row a line: what a new run changed is then seen in a diff."""
    parts = []
    for name, group in groups.items():
        head = json.dumps({"machine": group.machine, "date": group.date})[:-1]
        rows = ",\n".join(json.dumps(_rounded(dataclasses.asdict(row))) for row in group.rows)
        parts.append(f'{json.dumps(name)}: {head}, "rows": [\n{rows}\n]}}')
    write_text(path, "{" + ",\n".join(parts) + "}\n")


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Numbers to five digits, and without what was not measured."""
    kept = {name: value for name, value in row.items() if value is not None and value != ""}
    rounded = {name: float(f"{v:.5g}") if isinstance(v, float) else v for name, v in kept.items()}
    return rounded | {"kernels": row["kernels"]}


def all_rows(groups: dict[str, Group]) -> list[Row]:
    """The rows of all groups."""
    return [row for group in groups.values() for row in group.rows]
