"""From rows to one number per loss and patient: what counts as missing or worst, and what is averaged.

A missing or failed prediction counts as the worst value: 0, or for a distance the largest one in the table (in its
class, if one class is analysed alone). Distances have no upper bound, so this understates the true cost of a failure.
Failures are never dropped: otherwise a loss would gain by failing on the hard cases. The following count as failed: a
row that a loss is missing although another loss has that case, class, fold and seed; an infinite distance; an empty
cell.

**Where the reference is empty for a class** (see `table` for how that is recognised), an empty prediction is right and
anything else is a false alarm. A false alarm of one loss never removes the case for the others. `empty` sets how such
a case counts:

- `one`: the right prediction has the best value, 1 or 0 mm; the false alarm has the value in the table, which is 0, or
  for a distance the largest one where the cell is empty or infinite.
- `exclude`: case and class are left out for all losses; false alarms then do not affect the metric.
- `worst`: every empty cell counts as the worst.

Sensitivity is undefined there, and specificity where the reference fills the volume: these are left out for all
losses, whatever `empty` is. So are a case and class for which no loss has a value although the reference is not known
to be empty.

Averages are taken over the classes of a case, then over the cases of a patient, and last over runs. If each patient is
in one fold, its runs are the seeds of that fold (`folds`). If patients are in several folds (repeated
cross-validation), every fold with every seed is a run.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.statistics.table import ABSENT, RIGHTLY_EMPTY, CaseTable, having, of_overlap

if TYPE_CHECKING:
    from pipelines.evaluation.metrics.base import Metric

Floats = NDArray[np.float64]
#: Values that agree to this many digits are equal: further digits are rounding errors of sums.
DIGITS = 10
#: The rules for cases whose reference is empty for a class.
EMPTY = ("one", "exclude", "worst")


@dataclass(frozen=True)
class Scores:
    """The values of one metric.

    Attributes:
        losses: names of the losses `[L]`.
        patients: names of the patients `[n]`.
        values: `[L, n, S]`, patients by runs (S = 1: one run), in the metric's unit.
        balanced: whether every patient has all runs; otherwise the mean of the available ones replaces the others.
        missing: loss -> cases for which it has no row although other losses have one.
        failed: loss -> number of its empty or infinite cells, which counted as the worst.
        excluded: cases left out entirely or for one class, since the metric is undefined there.
        folds: `[n]`, the number of each patient's fold; all 0 with one fold, or if patients are in several.
        empty: cases whose reference is empty for a class.
    """

    metric: "Metric"
    losses: tuple[str, ...]
    patients: tuple[str, ...]
    values: Floats
    balanced: bool
    missing: dict[str, tuple[str, ...]]
    failed: dict[str, int]
    excluded: tuple[str, ...]
    folds: NDArray[np.intp]
    empty: tuple[str, ...] = ()

    @property
    def by_patient(self) -> Floats:
        """The values averaged over runs, `[L, n]`."""
        return np.round(self.values.mean(-1), DIGITS)


def scores(table: CaseTable, name: str, class_name: str | None = None, *, empty: str = "one") -> Scores:
    """The values of one metric per loss and patient, for one class or as the mean over the classes of a case.

    `empty` is the rule for cases whose reference is empty for a class: `one`, `exclude` or `worst`.
    """
    metric = table.metrics[name]
    frame = table.frame if class_name is None else table.frame[table.frame["class"] == class_name]
    rows = frame[name].to_numpy(float, copy=True)
    axes = [pd.factorize(frame[key], sort=True) for key in ("loss", "case", "class", "fold", "seed")]
    codes = [codes for codes, _ in axes]
    codes[0] = np.searchsorted(table.losses, frame["loss"].to_numpy(str))
    shape = (len(table.losses), *(len(names) for _, names in axes[1:]))
    absent = np.zeros(shape[1:3], bool)
    absent[codes[1], codes[2]] = frame[ABSENT].to_numpy(bool)

    right = frame[RIGHTLY_EMPTY].to_numpy(bool) & np.isnan(rows)
    if empty == "one" and metric.empty_reference == "option":
        rows[right] = metric.best
    failed = ~np.isfinite(rows)
    left_out = np.zeros(shape[1:3], bool)
    if metric.empty_reference == "left out" or (empty == "exclude" and metric.empty_reference == "option"):
        left_out |= absent
    if metric.empty_reference == "value":
        undefined = np.isnan(rows) & frame[[other for other in table.metrics if other != name]].notna().any(axis=1)
        left_out[codes[1][undefined], codes[2][undefined]] = True
    there, known = np.zeros(shape[1:3], bool), np.zeros(shape[1:3], bool)
    there[codes[1], codes[2]] = True
    seen = ~np.isnan(rows)
    known[codes[1][seen], codes[2][seen]] = True
    left_out |= there & ~known

    worst = metric.worst(float(rows[~failed].max(initial=0.0)))
    rows[failed] = worst
    at = tuple(codes)
    count, total = np.zeros(shape), np.zeros(shape)
    np.add.at(count, at, 1)
    np.add.at(total, at, rows)
    # A row that one loss has, all should have.
    wanted = (count > 0).any(0) & ~left_out[:, :, None, None]
    missing = wanted & (count == 0)
    # Over the classes of a case; which ones count is the same for all losses.
    sums = np.where(wanted, np.where(missing, worst, total), 0.0).sum(2)
    by_case = sums / np.maximum(wanted.sum(1), 1)

    cases = axes[1][1]
    owner = frame.groupby("case")["patient"].first().reindex(cases)
    owners, patients = pd.factorize(owner, sort=True)
    member = (owners == np.arange(len(patients))[:, None]).astype(float)
    counted = wanted.any(1)
    has = np.einsum("pc,cfs->pfs", member, counted)
    values = np.einsum("pc,lcfs->lpfs", member, np.where(counted, by_case, 0.0)) / np.maximum(has, 1)
    several = ((has > 0).any(-1).sum(-1) > 1).any()
    fold = (has > 0).any(-1).argmax(-1)
    values, kept, balanced = _align_runs(values.reshape(*values.shape[:2], -1), has.reshape(len(has), -1) > 0)
    folds = np.zeros(int(kept.sum()), np.intp) if several else np.unique(fold[kept], return_inverse=True)[1].ravel()

    names = [str(patient) for patient in patients[np.flatnonzero(kept)]]
    # Without the prefixes `case` and `patient`, if they are unique without them.
    short = [name.split(" ", 1)[1] for name in names]
    worst_cells = np.bincount(codes[0][failed & ~left_out[codes[1], codes[2]]], minlength=shape[0])
    return Scores(
        metric=metric,
        losses=table.losses,
        patients=tuple(short if len(set(short)) == len(short) else names),
        values=values,
        balanced=balanced,
        missing={
            loss: tuple(str(case) for case in cases[gaps])
            for loss, gaps in zip(table.losses, missing.any((2, 3, 4)), strict=True)
            if gaps.any()
        },
        failed={loss: int(n) for loss, n in zip(table.losses, worst_cells, strict=True) if n},
        excluded=tuple(str(case) for case in cases[np.flatnonzero(left_out.any(1))]),
        folds=folds.astype(np.intp),
        empty=tuple(str(case) for case in cases[np.flatnonzero(absent.any(1))]),
    )


def misses(table: CaseTable, class_name: str | None = None) -> dict[str, tuple[int, int]]:
    """The numbers of complete misses and of false alarms over all predictions, per loss.

    A complete miss finds nothing of a class that the reference contains; a false alarm finds a class that it does not.
    """
    frame = table.frame if class_name is None else table.frame[table.frame["class"] == class_name]
    absent = frame[ABSENT].to_numpy(bool)
    nothing = found_nothing(replace(table, frame=frame))
    alarms = absent & nothing
    for name in having(table.metrics, "value"):
        imperfect = table.metrics[name].sign * (table.metrics[name].best - frame[name].to_numpy(float)) > 0
        alarms = alarms | (absent & imperfect & ~frame[RIGHTLY_EMPTY].to_numpy(bool))
    found = pd.DataFrame({"loss": frame["loss"], "missed": nothing & ~absent, "alarms": alarms})
    sums = found.groupby("loss")[["missed", "alarms"]].sum().reindex(list(table.losses), fill_value=0)
    return {str(loss): (int(row["missed"]), int(row["alarms"])) for loss, row in sums.iterrows()}


@dataclass(frozen=True)
class Unlearned:
    """Runs of a loss that found a class in none of the cases that have it, at least two per run.

    Attributes:
        class_name: the class; `None` if the table names no classes.
        runs: folds and seeds of these runs; `None` where the table has no such column.
        every: whether these are all runs of the loss whose cases have the class.
        cases: number of cases of these runs whose reference contains the class.
        by_others: whether another loss found the class in one of these cases; `None` if no other loss has scores there.
    """

    loss: str
    class_name: str | None
    runs: tuple[tuple[str | None, str | None], ...]
    every: bool
    cases: int
    by_others: bool | None


def unlearned(table: CaseTable) -> tuple[Unlearned, ...]:
    """Losses and classes of which a run found nothing in any case; those that other runs of the loss found first."""
    overlap = table.frame[of_overlap(table.metrics)]
    frame = table.frame.assign(nothing=found_nothing(table), scored=overlap.notna().any(axis=1))
    frame = frame[~frame[ABSENT]]
    found = []
    for (loss, class_name), rows in frame.groupby(["loss", "class"]):
        runs = rows.groupby(["fold", "seed"]).agg(nothing=("nothing", "all"), cases=("case", "nunique"))
        lost = runs[runs["nothing"] & (runs["cases"] > 1)]
        if len(lost):
            names = tuple(
                (str(fold) if "fold" in table.given else None, str(seed) if "seed" in table.given else None)
                for fold, seed in lost.index
            )
            cases = rows["case"][pd.MultiIndex.from_frame(rows[["fold", "seed"]]).isin(lost.index)].unique()
            others = frame[frame["scored"] & (frame["loss"] != loss) & (frame["class"] == class_name)]
            others = others[others["case"].isin(cases)]
            by_others = None if others.empty else not others["nothing"].all()
            of_class = str(class_name) if table.classes else None
            found.append(Unlearned(str(loss), of_class, names, len(lost) == len(runs), len(cases), by_others))
    return tuple(sorted(found, key=lambda one: one.every))


def found_nothing(table: CaseTable) -> NDArray[np.bool_]:
    """Per row, whether the prediction has no overlap with the reference."""
    overlap = table.frame[of_overlap(table.metrics)]
    nothing = ((overlap == 0) | overlap.isna()).to_numpy().all(1)
    return np.asarray(nothing & (overlap == 0).to_numpy().any(1))


def _align_runs(values: Floats, has: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.bool_], bool]:
    """Move each patient's runs to the front, and fill up with their mean if another patient has more runs."""
    kept = np.asarray(has.any(1))
    values, has = values[:, kept], has[kept]
    most = int(has.sum(1).max(initial=1))
    order = np.argsort(~has, axis=1, kind="stable")[:, :most]
    ordered = np.take_along_axis(values, order[None], 2)
    present = np.take_along_axis(has, order, 1)
    mean = np.where(present, ordered, 0.0).sum(-1, keepdims=True) / np.maximum(present.sum(-1, keepdims=True), 1)
    return np.where(present, ordered, mean), kept, bool(present.all())
