"""MIST's `results.csv`: the table of one training.

MIST (github.com/mist-medical/MIST, `mist/evaluation`) writes a row a case: `id`, and `<class>_<measure>` for each class
and measure, such as `tumor_dice,tumor_haus95`. Its measures are `dice`, `haus95` (mm), `surf_dice` (1 mm unless told
otherwise) and `avg_surf` (mm); lesion-wise ones and those that others have added are left out. Rows of statistics
follow: Mean, Std, 25th Percentile, Median, 75th Percentile. Where reference and prediction are both empty MIST writes
the best value, where one is, the worst; of distances the volume's diagonal.
"""

import re
from pathlib import Path

import pandas as pd

from pipelines.errors import UserError

#: MIST's measures, and the columns that they are here.
_MIST = {"dice": "dice", "haus95": "hd95_mm", "surf_dice": "nsd", "avg_surf": "assd_mm"}
#: Rows that MIST puts below the cases.
_STATISTICS = {"mean", "std", "25th percentile", "median", "75th percentile"}


def is_mist(path: Path) -> bool:
    """Whether a CSV file's columns are MIST's."""
    try:
        columns = pd.read_csv(path, nrows=0, skipinitialspace=True).columns
    except (OSError, ValueError):
        return False
    return "id" in columns and "loss" not in columns and any(_column(column) is not None for column in columns)


def mist_rows(name: str, path: Path, frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """A row a case and class of a table of MIST's, and what has to be told of it.

    Args:
        name: the method's.
        path: the file.
        frame: its content, as text.

    Raises:
        UserError: it has no column of a known measure, or a case twice.
    """
    while len(frame) and frame["id"].iloc[-1].strip().lower() in _STATISTICS:
        frame = frame.iloc[:-1]
    columns = {column: found for column in frame.columns if (found := _column(column)) is not None}
    if not columns:
        raise UserError(f"{name}: {path} has no column of a measure such as tumor_dice; expected MIST's results.csv")
    doubled = frame["id"][frame["id"].duplicated()]
    if len(doubled):
        raise UserError(f"{name}: {path}: case {doubled.iloc[0]} comes twice; expected a row a case")
    blocks = []
    for class_name in dict.fromkeys(own for own, _ in columns.values()):
        own = {column: metric for column, (of_class, metric) in columns.items() if of_class == class_name}
        block = frame[list(own)].rename(columns=own)
        blocks.append(block.assign(case=frame["id"], **{"class": class_name}))
    table = pd.concat(blocks, ignore_index=True).assign(loss=name)
    unknown = [column for column in frame.columns if column != "id" and column not in columns]
    told = [f"{name}: columns of {path.name} that are left out: {', '.join(unknown)}."] if unknown else []
    return table, told


def _column(column: str) -> tuple[str, str] | None:
    """Class and measure of a column of MIST's; None of another."""
    measure = next((own for own in sorted(_MIST, key=len, reverse=True) if column.endswith(f"_{own}")), None)
    if measure is None or re.search(r"(^|_)lesion_wise_", column):
        return None
    class_name = column.removesuffix(f"_{measure}")
    return (class_name, _MIST[measure]) if class_name else None
