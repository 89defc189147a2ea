"""Tables of one method each, put together: MIST's `results.csv`, or what `medloss evaluate --out` writes."""

from itertools import pairwise
from pathlib import Path

import pandas as pd

from pipelines.comparison.finished.facts import tables_facts
from pipelines.comparison.finished.mist import is_mist, mist_rows
from pipelines.comparison.finished.result import WHAT_DIFFERS, Finished
from pipelines.comparison.report.collect import Collected
from pipelines.comparison.statistics import check_table, refuse_disjoint
from pipelines.comparison.statistics.metrics import in_report_order
from pipelines.errors import UserError
from pipelines.evaluation.registry import METRICS

_EXPECTED = (
    "expected MIST's results.csv (id, <class>_dice, ...) or the CSV of `medloss evaluate` (case, class, dice, ...)"
)


def from_tables(named: dict[str, Path]) -> Finished:
    """Put tables of one method each together: MIST's, or those of `medloss evaluate`.

    Args:
        named: name -> CSV file.

    Raises:
        UserError: they are no such tables, or have no measure in common.
    """
    frames, notes = [], [WHAT_DIFFERS]
    for name, path in named.items():
        frame, told = _read(name, path)
        frames.append(frame)
        notes += told
    mist = [name for name, path in named.items() if is_mist(path)]
    if mist and len(mist) < len(named):
        raise UserError(f"{mist[0]} is MIST's table, and others are not, which count empty classes otherwise")
    if mist:
        notes.append(
            "The measures are MIST's own: where reference and prediction are both empty its Dice is 1, its distance 0."
        )
    _check_classes(dict(zip(named, frames, strict=True)))
    known = in_report_order(METRICS)
    shared = [metric for metric in known if all(metric in frame.columns for frame in frames)]
    if not shared:
        raise UserError(f"the tables have no measure in common; expected one of {', '.join(known)}")
    keys = [key for key in ("case", "class", "loss", "patient", "fold", "seed")
            if any(key in frame.columns for frame in frames)]  # fmt: skip
    for name, frame in zip(named, frames, strict=True):
        if missing := [key for key in keys if key not in frame.columns]:
            raise UserError(f"{name}: {named[name]} has no column {missing[0]}, which others have")
        extra = [metric for metric in known if metric in frame.columns and metric not in shared]
        if extra:
            notes.append(f"{name}: measures that are not in every table are left out: {', '.join(extra)}.")
    rows = pd.concat([frame[[*keys, *shared]] for frame in frames], ignore_index=True)
    table = check_table(rows, METRICS)
    refuse_disjoint(table)
    collected = Collected(title=" and ".join(named), table=table, facts=tables_facts(named, table), notes=tuple(notes))
    return Finished(collected, rows, None, tuple(notes[1:]))


def _check_classes(frames: dict[str, pd.DataFrame]) -> None:
    """They have to be the same: what a table lacks counts as the worst there."""
    names = {name: set(frame["class"].str.strip()) for name, frame in frames.items() if "class" in frame.columns}
    for (one, own), (other, others) in pairwise(names.items()):
        if own != others:
            raise UserError(f"the tables {one} and {other} have other classes: {', '.join(sorted(own ^ others)[:6])}")


def _read(name: str, path: Path) -> tuple[pd.DataFrame, list[str]]:
    """One method's results as rows of a table of results, as text, and what has to be told of them.

    Args:
        name: the method's.
        path: a CSV file.

    Raises:
        UserError: it is no such table.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        told = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{name}: {path} cannot be read as a CSV table: {told}; {_EXPECTED}") from None
    if "loss" in frame.columns:
        raise UserError(f"{name}: {path} has a column loss, so it is of several; pass it as --cases {path}")
    if "case" in frame.columns:
        return frame.assign(loss=name), []
    if "id" not in frame.columns:
        raise UserError(f"{name}: {path} has the columns {', '.join(frame.columns[:6])}; {_EXPECTED}")
    return mist_rows(name, path, frame)
