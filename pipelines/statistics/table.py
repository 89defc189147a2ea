"""The table of results, checked: one row per loss and case, and per class, fold and seed if there are several.

The columns are `case`, `loss`, and at least one of the known metrics. Optional columns:

- `class`: the foreground class; the score of a case is the mean over its classes. A case that was not annotated for a
  class has no row for it, with any loss.
- `patient`: the patient, if several cases belong to one. The patient is the statistical unit, and the cases are
  averaged. Without this column, or in an empty cell, each case is a patient.
- `seed`: the seed of the run; seeds are averaged within the case.
- `fold`: the fold in which the case was validated. A run is a fold with a seed. Folds are never counted as cases: if a
  case is in several folds (repeated cross-validation), these are averaged, as seeds are.

An empty cell of a metric is a failed prediction, or a rightly empty one: neither reference nor prediction contains the
class. A rightly empty prediction is recognised by a row with a specificity (or another metric that has a value there)
and nothing else, as `medloss evaluate` writes it; or by overlap metrics spelled `nan`, as nnU-Net writes them, if no
loss overlaps there. The reference is also known to be empty for a class where a row has a Dice and no sensitivity (nor
another metric that is undefined there). How such rows count is described in `scores`.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from pipelines.utils import UserError

if TYPE_CHECKING:  # the command imports this module, and does not wait for pandas
    import pandas as pd

    from pipelines.evaluation.metrics.base import Metric


def in_report_order(metrics: Mapping[str, "Metric"]) -> dict[str, "Metric"]:
    """Sort metrics as reports show them: shares before metrics with a unit, those of one kind of error last.

    The order within each group is kept.
    """

    order = sorted(metrics.values(), key=lambda metric: (bool(metric.unit), metric.empty_reference != "option"))
    return {metric.name: metric for metric in order}


def having(metrics: Mapping[str, "Metric"], empty_reference: str) -> list[str]:
    """The names of the metrics with this `empty_reference`."""
    return [name for name, metric in metrics.items() if metric.empty_reference == empty_reference]


#: Columns that identify a row.
KEYS = ("loss", "case", "class", "fold", "seed", "patient")
#: The value of a key whose column is missing: one class, one fold, one seed.
_ONE = "all"
#: A patient may have the same name as another patient's case: the prefix of their keys keeps them apart.
_PATIENT, _CASE = "patient ", "case "
#: What tools write for a missing number.
_EMPTY = ("", "nan", "na", "none")
#: No distance within a patient is this large: some tools write such a number for a missing distance.
_FARTHEST_MM = 1e6
#: Columns of the checked table: the reference is empty for the class; the prediction is empty there, too.
ABSENT, RIGHTLY_EMPTY = "reference empty", "rightly empty"


@dataclass(frozen=True)
class CaseTable:
    """A checked table.

    Attributes:
        frame: all of `KEYS` as text, the metrics as numbers, `ABSENT` and `RIGHTLY_EMPTY`; rows sorted by the keys.
        metrics: the metrics of the table by name, in the order of reports; those with a `target`, which describe a
            bias, are only in the frame.
        classes: names of the classes, sorted like `losses`; empty without that column.
        given: those of `KEYS` that the table had as columns.
    """

    frame: "pd.DataFrame"
    metrics: Mapping[str, "Metric"]
    losses: tuple[str, ...]
    classes: tuple[str, ...]
    given: frozenset[str]

    @property
    def patients_named(self) -> bool:
        """Whether every row names its patient."""
        return bool(self.frame["patient"].str.startswith(_PATIENT).all())


def check_table(frame: "pd.DataFrame", metrics: Mapping[str, "Metric"]) -> CaseTable:
    """Check a table with the columns that the module describes, given the known metrics by name.

    Raises:
        UserError: columns are missing or unknown, a row is repeated, a cell is not a number or out of range, a case
            has two patients, there are fewer than two losses, or a loss has no row for a seed that other losses have.
    """
    import pandas as pd

    frame = frame.rename(columns=str)
    metrics = _checked_columns(list(frame.columns), in_report_order(metrics))
    given = frozenset(KEYS) & set(frame.columns)
    checked = pd.DataFrame({key: _names(frame, key) for key in KEYS})
    for name, metric in metrics.items():
        checked[name] = _numbers(frame[name], metric, checked)
    metrics = {name: metric for name, metric in metrics.items() if metric.target is None}
    key = list(KEYS[:-1])
    twice = checked[checked.duplicated(key)]
    if len(twice):
        row = ", ".join(f"{name} {value}" for name, value in twice.iloc[0][key].items() if name in given)
        raise UserError(f"{row}: {len(twice)} repeated row(s); expected one row each, or a column seed or fold")
    patients = checked.groupby("case")["patient"].nunique()
    if (patients > 1).any():
        raise UserError(f"case {patients.idxmax()}: has {patients.max()} patients; expected one")
    losses = tuple(sorted(checked["loss"].unique()))
    if len(losses) < 2:
        raise UserError(f"got {len(losses)} loss(es) ({', '.join(losses)}); expected at least two to compare")
    # The table does not show whether missing runs failed or were never planned: only failed ones count as the worst.
    for loss, of_loss in checked.groupby("loss")["seed"]:
        if missing := sorted(set(checked["seed"]) - set(of_loss)):
            raise UserError(
                f"loss {loss}: no row for seed {', '.join(missing)}, which other losses have; expected the same seeds "
                "for all: add the rows, without values if a run failed (they rank worst), or leave the seed out"
            )
    _find_empty(checked, frame, metrics)
    classes = tuple(sorted(checked["class"].unique())) if "class" in given else ()
    ordered = checked.sort_values(key, ignore_index=True)
    return CaseTable(ordered, metrics, losses, classes, given)


def of_overlap(metrics: Mapping[str, "Metric"]) -> list[str]:
    """The names of the metrics that are 0 without any overlap."""
    return [name for name, metric in metrics.items() if metric.zero_without_overlap]


def cases_by_class(table: CaseTable) -> dict[str, int]:
    """Class -> number of cases for which any loss has a row; empty if all classes have all cases.

    They differ where not every case was annotated for every class.
    """
    counts = table.frame.groupby("class")["case"].nunique()
    if (counts == table.frame["case"].nunique()).all():
        return {}
    return {str(name): int(count) for name, count in counts.items()}


def refuse_disjoint(table: CaseTable) -> None:
    """Refuse losses without a common case, most likely named differently: missing cases would count as the worst.

    A comparison that is still running is not checked: its losses may not share a case yet.

    Raises:
        UserError: two losses have no case in common.
    """
    cases = {str(loss): set(names) for loss, names in table.frame.groupby("loss")["case"]}
    for (first, of_first), (second, of_second) in combinations(cases.items(), 2):
        if not of_first & of_second:
            raise UserError(
                f"{first} and {second} have no case in common: {min(of_first)} and {min(of_second)}, for example; "
                "expected the same name for a case in all rows"
            )


def with_failed_runs(frame: "pd.DataFrame", runs: Iterable[tuple[str, int | str, int | str]]) -> "pd.DataFrame":
    """Add rows without values for failed runs, so that these rank worst instead of being dropped.

    Args:
        frame: the table, with columns `fold` and `seed`.
        runs: loss, fold and seed of the failed runs. Their cases are those of the other runs in that fold.
    """
    import pandas as pd

    blocks = [frame]
    keys = [key for key in ("case", "class", "patient") if key in frame.columns]
    for loss, fold, seed in runs:
        cases = frame.loc[frame["fold"].astype(str) == str(fold), keys].drop_duplicates()
        blocks.append(cases.assign(loss=loss, fold=fold, seed=seed))
    return pd.concat(blocks, ignore_index=True)


def _checked_columns(columns: list[str], known: Mapping[str, "Metric"]) -> dict[str, "Metric"]:
    for column in columns:
        if columns.count(column) > 1:
            raise UserError(f"column {column}: repeated; expected it once")
        if column not in KEYS and column not in known:
            near = difflib.get_close_matches(column, [*KEYS, *known], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"column {column}: unknown; expected {', '.join([*KEYS, *known])}{hint}")
    for column in ("case", "loss"):
        if column not in columns:
            raise UserError(f"no column {column}; got {', '.join(columns) or 'none'}; expected case, loss and a metric")
    metrics = {name: metric for name, metric in known.items() if name in columns}
    comparable = [name for name, metric in known.items() if metric.target is None]
    if not metrics.keys() & comparable:
        raise UserError(f"no column with a metric; expected at least one of {', '.join(comparable)}")
    return metrics


def _names(frame: "pd.DataFrame", key: str) -> "pd.Series":
    import numpy as np
    import pandas as pd

    if key not in frame.columns:
        return _CASE + _names(frame, "case") if key == "patient" else pd.Series(_ONE, frame.index, dtype=str)
    column = frame[key]
    if pd.api.types.is_float_dtype(column) and (column.dropna() % 1 == 0).all():
        column = column.astype("Int64")  # pandas turns whole numbers with a gap into 1.0
    empty = column.isna()
    names = column.astype(str).str.strip()
    empty |= names == ""
    if key == "patient":
        return (_PATIENT + names).where(~empty, _CASE + _names(frame, "case"))
    if empty.any():
        raise UserError(f"column {key}: empty in row {int(np.flatnonzero(empty)[0]) + 1}; expected a name in every row")
    return names


def _numbers(column: "pd.Series", metric: "Metric", keys: "pd.DataFrame") -> "pd.Series":
    import numpy as np
    import pandas as pd

    if not pd.api.types.is_numeric_dtype(column):
        column = column.where(~column.astype(str).str.strip().str.lower().isin(_EMPTY))
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    low, high = metric.lower - 1e-6, metric.upper + 1e-6
    text = numbers.isna() & column.notna()
    # Some tools write an infinite distance for an empty prediction.
    wrong = text | (numbers < low) | (numbers > high)
    if metric.unit == "mm":
        wrong |= np.isfinite(numbers) & (numbers > _FARTHEST_MM)
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        expected = f"{metric.lower:g} to {metric.upper:g}{' (not percent)' if metric.upper == 1 else ''}"
        if not metric.bounded:
            expected = f"mm, {metric.lower:g} to 1e6 or inf" if metric.unit == "mm" else f"{metric.lower:g} or more"
        row = f"case {keys['case'].iloc[at]}, loss {keys['loss'].iloc[at]}"
        raise UserError(
            f"{metric.name}: got {column.iloc[at]} ({row}); expected a number, {expected}, or an empty cell"
        )
    return numbers


def _find_empty(checked: "pd.DataFrame", frame: "pd.DataFrame", metrics: Mapping[str, "Metric"]) -> None:
    """Add `ABSENT` and `RIGHTLY_EMPTY`."""
    import numpy as np
    import pandas as pd

    values = checked[list(metrics)]
    overlap, always, left_out = of_overlap(metrics), having(metrics, "value"), having(metrics, "left out")
    empty = (values[always].notna().any(axis=1) & values.drop(columns=always).isna().all(axis=1)).to_numpy()
    if overlap:
        spelled = [frame[metric].astype(str).str.strip().str.lower() == "nan" for metric in overlap
                   if not pd.api.types.is_numeric_dtype(frame[metric])]  # fmt: skip
        if len(spelled) == len(overlap):
            empty = empty | np.logical_and.reduce([cells.to_numpy() for cells in spelled])
    absent = empty.copy()
    if left_out:
        absent = absent | (values[left_out].isna().all(axis=1) & values.notna().any(axis=1)).to_numpy()
    present = (values[overlap] > 0).to_numpy().any(1) if overlap else np.zeros(len(checked), bool)
    present = present | values[left_out].notna().to_numpy().any(1)
    groups = pd.DataFrame({"case": checked["case"], "class": checked["class"], "absent": absent, "present": present})
    of_all = groups.groupby(["case", "class"])[["absent", "present"]].transform("any")
    checked[ABSENT] = of_all["absent"] & ~of_all["present"]
    checked[RIGHTLY_EMPTY] = checked[ABSENT] & empty
