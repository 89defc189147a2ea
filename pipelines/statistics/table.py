"""The table of results: a row per loss and case, read and checked; and what is known of its metrics.

The table of results: a row per loss and case, and where they are repeated a class, fold and seed; read and checked.

Columns: `case`, `loss`, and of the known metrics at least one; optionally

- `class`: of several foreground classes; a case's score is the mean over its classes.
- `patient`: of several cases of one patient; the patient is the unit, the cases are averaged. Without it, or where it
  is empty, each case is a patient of its own.
- `seed`: of several trainings; averaged within the case.
- `fold`: in which fold the case was validated. A training is a fold with a seed. Folds are never counted as cases:
  where a case comes in several (repeated cross-validation), they are averaged, as seeds are.

An empty cell of a measure is a prediction that failed, or one that is rightly empty: reference and prediction have
nothing of the class. The latter is a row that has a specificity (or another metric that has a value there) and nothing
else, as `medloss evaluate` writes it, or one whose overlap metrics are spelled `nan`, as nnU-Net's are, where no loss
overlaps with anything. The reference has nothing of a class, too, where a row has a Dice and no sensitivity (nor
another metric that has no value there). `scores` says what is made of that.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from pipelines.utils import UserError

# What the statistics need to know of a metric: the table comes with it. `pipelines.evaluation` has the metrics.


class MetricInfo(Protocol):
    """A metric, as `pipelines.evaluation.metrics.base.Metric` describes it, without how it is computed."""

    @property
    def name(self) -> str:
        """Its column."""

    @property
    def label(self) -> str:
        """How it is written for people."""

    @property
    def unit(self) -> str:
        """`mm` for example; empty for a share."""

    @property
    def higher_is_better(self) -> bool:
        """The direction."""

    @property
    def sign(self) -> int:
        """Times this, more is better."""

    @property
    def lower(self) -> float:
        """The smallest value that it can have."""

    @property
    def upper(self) -> float:
        """The largest one; infinite where there is none."""

    @property
    def bounded(self) -> bool:
        """Whether there is a largest value."""

    @property
    def best(self) -> float:
        """The value of a perfect prediction."""

    @property
    def decimals(self) -> int:
        """How many are shown."""

    @property
    def heading(self) -> str:
        """Its label with its unit."""

    @property
    def empty_reference(self) -> str:
        """What it is where the reference has nothing of the class: `option`, `left out` or `value`."""

    @property
    def zero_without_overlap(self) -> bool:
        """Whether it is 0 just where prediction and reference share no voxel."""

    def worst(self, largest: float) -> float:
        """What a failed prediction counts, where `largest` is the largest value seen."""

    def shown(self, value: float, *, signed: bool = False, decimals: int | None = None) -> str:
        """A value as text, with its unit."""


def in_report_order(metrics: Mapping[str, MetricInfo]) -> dict[str, MetricInfo]:
    """The metrics in the order of reports: shares before those with a unit, those of one side of the errors last.

    Within each of these they stay in their order.
    """

    def place(metric: MetricInfo) -> tuple[bool, bool]:
        return bool(metric.unit), metric.empty_reference != "option"

    return {metric.name: metric for metric in sorted(metrics.values(), key=place)}


def having(metrics: Mapping[str, MetricInfo], empty_reference: str) -> list[str]:
    """The names of those with this `empty_reference`."""
    return [name for name, metric in metrics.items() if metric.empty_reference == empty_reference]


#: Columns that say what a row is about.
KEYS = ("loss", "case", "class", "fold", "seed", "patient")
#: What a column is without: one class, one fold, one seed.
_ONE = "all"
#: What tools write where there is no number.
_EMPTY = ("", "nan", "na", "none")
#: No distance in a patient is so large: it stands for a missing one, and is not one to calculate with.
_FARTHEST_MM = 1e6
#: Columns of the checked table: the reference has nothing of the class; and the prediction rightly neither.
ABSENT, RIGHTLY_EMPTY = "reference empty", "rightly empty"


@dataclass(frozen=True)
class CaseTable:
    """A checked table.

    Attributes:
        frame: all of `KEYS`, as text, the measures, as numbers, `ABSENT` and `RIGHTLY_EMPTY`; rows in the order of the
            keys.
        metrics: those that it has, by name, in the order of reports.
        losses: sorted.
        classes: sorted; empty without the column.
        given: the columns of `KEYS` that the table came with.
    """

    frame: pd.DataFrame
    metrics: Mapping[str, MetricInfo]
    losses: tuple[str, ...]
    classes: tuple[str, ...]
    given: frozenset[str]


def read_table(path: Path, metrics: Mapping[str, MetricInfo]) -> CaseTable:
    """Read and check a CSV file.

    Args:
        path: the file.
        metrics: those that are known, by name.

    Raises:
        UserError: not a file, not CSV, or not such a table.
    """
    try:
        # Names stay text: case 001 is not case 1.
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a CSV table with columns case, loss and dice") from None
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"{path}: cannot be read as a CSV table: {str(error).splitlines()[0]}") from None
    try:
        return check_table(frame, metrics)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check_table(frame: pd.DataFrame, metrics: Mapping[str, MetricInfo]) -> CaseTable:
    """Check a table.

    Args:
        frame: as the module says.
        metrics: those that are known, by name.

    Raises:
        UserError: columns are missing or unknown, a row comes twice, a cell is no number or out of range, a case has
            two patients, there are fewer than two losses, or a loss has no row of a seed that others have.
    """
    frame = frame.rename(columns=str)
    metrics = _checked_columns(list(frame.columns), in_report_order(metrics))
    given = frozenset(KEYS) & set(frame.columns)
    checked = pd.DataFrame({key: _names(frame, key) for key in KEYS})
    for name, metric in metrics.items():
        checked[name] = _numbers(frame[name], metric, checked)
    key = [*KEYS[:-1]]
    twice = checked[checked.duplicated(key)]
    if len(twice):
        row = ", ".join(f"{name} {value}" for name, value in twice.iloc[0][key].items() if name in given)
        raise UserError(f"{row}: rows come twice, {len(twice)} in all; expected one row each, or a column seed or fold")
    patients = checked.groupby("case")["patient"].nunique()
    if (patients > 1).any():
        raise UserError(f"case {patients.idxmax()}: has {patients.max()} patients; expected one")
    losses = tuple(sorted(checked["loss"].unique()))
    if len(losses) < 2:
        raise UserError(f"got {len(losses)} loss(es) ({', '.join(losses)}); expected at least two to compare")
    _check_seeds(checked)
    _find_empty(checked, frame, metrics)
    classes = tuple(sorted(checked["class"].unique())) if "class" in given else ()
    ordered = checked.sort_values(key, ignore_index=True)
    return CaseTable(ordered, metrics, losses, classes, given)


def of_overlap(metrics: Mapping[str, MetricInfo]) -> list[str]:
    """The names of those that are 0 where nothing was found of what is there."""
    return [name for name, metric in metrics.items() if metric.zero_without_overlap]


def refuse_disjoint(table: CaseTable) -> None:
    """Refuse losses without a common case, as where names differ: what a loss lacks counts as the worst there.

    Raises:
        UserError: two losses are so. In a comparison under way they may be.
    """
    cases = {str(loss): set(own) for loss, own in table.frame.groupby("loss")["case"]}
    for (one, own), (other, others) in combinations(cases.items(), 2):
        if not own & others:
            raise UserError(
                f"{one} and {other} have no case in common: {min(own)} and {min(others)}, for example; expected one "
                "name a case"
            )


def with_failed_runs(frame: pd.DataFrame, runs: Iterable[tuple[str, int | str, int | str]]) -> pd.DataFrame:
    """Add rows without values for runs that failed: they rank worst, and do not drop out.

    Args:
        frame: the table, with columns `fold` and `seed`.
        runs: the failed ones' loss, fold and seed. Their cases are those that the others have in that fold.
    """
    blocks = [frame]
    about = [key for key in ("case", "class", "patient") if key in frame.columns]
    for loss, fold, seed in runs:
        cases = frame.loc[frame["fold"].astype(str) == str(fold), about].drop_duplicates()
        blocks.append(cases.assign(loss=loss, fold=fold, seed=seed))
    return pd.concat(blocks, ignore_index=True)


def _checked_columns(columns: list[str], known: Mapping[str, MetricInfo]) -> dict[str, MetricInfo]:
    if len(columns) == 1 and (mark := next((mark for mark in ";\t" if mark in columns[0]), None)):
        raise UserError(f"its columns are separated by {'tabs' if mark != ';' else 'semicolons'}; expected commas")
    for column in columns:
        if columns.count(column) > 1:
            raise UserError(f"column {column}: comes twice")
        if column not in KEYS and column not in known:
            near = difflib.get_close_matches(column, [*KEYS, *known], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"column {column}: unknown; expected {', '.join([*KEYS, *known])}{hint}")
    for column in ("case", "loss"):
        if column not in columns:
            raise UserError(
                f"no column {column}; got {', '.join(columns) or 'none'}; expected case, loss and a measure"
            )
    metrics = {name: metric for name, metric in known.items() if name in columns}
    if not metrics:
        raise UserError(f"no column with a measure; expected at least one of {', '.join(known)}")
    return metrics


def _names(frame: pd.DataFrame, key: str) -> pd.Series:
    if key not in frame.columns:
        # A patient's number may be another one's case: they are told apart by what comes before.
        return "case " + _names(frame, "case") if key == "patient" else pd.Series(_ONE, frame.index, dtype=str)
    column = frame[key]
    if pd.api.types.is_float_dtype(column) and (column.dropna() % 1 == 0).all():
        column = column.astype("Int64")  # of whole numbers with a gap pandas makes 1.0
    empty = column.isna()
    names = column.astype(str).str.strip()
    empty |= names == ""
    if key == "patient":
        return ("patient " + names).where(~empty, "case " + _names(frame, "case"))
    if empty.any():
        raise UserError(f"column {key}: empty in row {int(np.flatnonzero(empty)[0]) + 1}; expected a name in every row")
    return names


def _numbers(column: pd.Series, metric: MetricInfo, keys: pd.DataFrame) -> pd.Series:
    if not pd.api.types.is_numeric_dtype(column):
        column = column.where(~column.astype(str).str.strip().str.lower().isin(_EMPTY))
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    low, high = metric.lower - 1e-6, metric.upper + 1e-6
    text = numbers.isna() & column.notna()
    # An infinite distance is what some tools give for an empty prediction.
    wrong = text | (numbers < low) | (numbers > high) | (np.isfinite(numbers) & (numbers > _FARTHEST_MM))
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        expected = f"{metric.lower:g} to {metric.upper:g}{' (not percent)' if metric.upper == 1 else ''}"
        if not metric.bounded:
            expected = ", ".join(filter(None, [metric.unit, f"{metric.lower:g} to 1e6 or inf"]))
        row = f"case {keys['case'].iloc[at]}, loss {keys['loss'].iloc[at]}"
        raise UserError(
            f"{metric.name}: got {column.iloc[at]} ({row}); expected a number, {expected}, or an empty cell"
        )
    return numbers


def _find_empty(checked: pd.DataFrame, frame: pd.DataFrame, metrics: Mapping[str, MetricInfo]) -> None:
    """Add `ABSENT` and `RIGHTLY_EMPTY`."""
    values = checked[list(metrics)]
    overlap, always, left_out = of_overlap(metrics), having(metrics, "value"), having(metrics, "left out")
    empty = (values[always].notna().any(axis=1) & values.drop(columns=always).isna().all(axis=1)).to_numpy()
    if overlap:
        spelled = [frame[metric].astype(str).str.strip().str.lower() == "nan" for metric in overlap
                   if not pd.api.types.is_numeric_dtype(frame[metric])]  # fmt: skip
        if len(spelled) == len(overlap):
            empty = empty | np.logical_and.reduce([own.to_numpy() for own in spelled])
    absent = empty.copy()
    if left_out:
        absent = absent | (values[left_out].isna().all(axis=1) & values.notna().any(axis=1)).to_numpy()
    present = (values[overlap] > 0).to_numpy().any(1) if overlap else np.zeros(len(checked), bool)
    present = present | values[left_out].notna().to_numpy().any(1)
    groups = pd.DataFrame({"case": checked["case"], "class": checked["class"], "absent": absent, "present": present})
    of_all = groups.groupby(["case", "class"])[["absent", "present"]].transform("any")
    checked[ABSENT] = of_all["absent"] & ~of_all["present"]
    checked[RIGHTLY_EMPTY] = checked[ABSENT] & empty


def _check_seeds(checked: pd.DataFrame) -> None:
    # Was it planned so, or did it fail? The one must not be averaged with zeros, the other must not drop out.
    seeds = set(checked["seed"])
    for loss, own in checked.groupby("loss")["seed"]:
        lacking = sorted(seeds - set(own))
        if lacking:
            raise UserError(
                f"loss {loss}: no row of seed {', '.join(lacking)}, which others have; expected the same seeds of all: "
                "add the rows, without values where a training failed (they rank worst), or leave the seed out"
            )
