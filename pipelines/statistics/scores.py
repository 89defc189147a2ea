"""From rows to one number per loss and patient: what is missing, what counts as worst, and what is averaged.

A prediction that is missing or failed counts as the worst: 0, or of a distance the largest one in the table, of its
class alone where that is looked at alone (a distance has no bound; so the true cost of a failure is understated there).
It never drops out, since a loss that fails on the hard cases would gain by it. So count: a loss's rows that are not
there although another loss has that case, class, fold and seed; an infinite distance; an empty cell.

**Where the reference has nothing of a class** (`table` says how that is known), an empty prediction is right, and
anything else a false alarm. Nothing drops out for a false alarm of one loss. `empty` says what such a case counts:

- `one`: the right prediction has the best value, 1, or of a distance 0 mm; the false alarm what the table says, which
  is 0, or of a distance the largest one where the cell is empty or infinite.
- `exclude`: case and class are left out for all losses alike; false alarms are then not in the measure.
- `worst`: every empty cell counts as the worst.

Sensitivity has no meaning there, and specificity none where the reference fills the volume: left out for all losses
alike, whatever `empty` says. So is a case and class of which no loss has a value though the reference is not known to
be empty.

Order of averaging: classes of a case, cases of a patient, and trainings last. Where each patient is in one fold,
trainings are its seeds, and `folds` says whose they are. Where patients are in several folds (repeated
cross-validation), every fold with every seed is a training, like a seed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.statistics.table import ABSENT, RIGHTLY_EMPTY, CaseTable, MetricInfo, having, of_overlap

Floats = NDArray[np.float64]
#: Digits that are kept before two values are called equal: beyond are rounding errors of sums.
DIGITS = 10
#: What may count where the reference has nothing of a class.
EMPTY = ("one", "exclude", "worst")


@dataclass(frozen=True)
class Scores:
    """One measure's values.

    Attributes:
        metric: the measure.
        losses: their names `[L]`.
        patients: their names `[n]`.
        values: `[L, n, S]`, patients by trainings (S = 1: one), in the measure's unit.
        balanced: every patient has all trainings; otherwise the mean of those it has stands for the others.
        lacking: loss -> cases of which it lacks a row that others have.
        failed: loss -> how many of its empty or infinite cells counted as worst.
        excluded: cases of which a class, or all, were left out since the measure has no meaning there.
        folds: `[n]`, the number of each patient's fold; all 0 with one fold, or where patients are in several.
        empty: cases in which the reference has nothing of a class.
    """

    metric: MetricInfo
    losses: tuple[str, ...]
    patients: tuple[str, ...]
    values: Floats
    balanced: bool
    lacking: dict[str, tuple[str, ...]]
    failed: dict[str, int]
    excluded: tuple[str, ...]
    folds: NDArray[np.intp]
    empty: tuple[str, ...] = ()

    @property
    def by_patient(self) -> Floats:
        """`[L, n]`: seeds averaged."""
        return np.round(self.values.mean(-1), DIGITS)


def scores(table: CaseTable, name: str, class_name: str | None = None, *, empty: str = "one") -> Scores:
    """One measure's values, per loss and patient.

    Args:
        table: checked.
        name: the measure.
        class_name: of this class alone; else the mean over a case's classes.
        empty: what counts where the reference has nothing of a class: `one`, `exclude` or `worst`.
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
        without_meaning = np.isnan(rows) & frame[[own for own in table.metrics if own != name]].notna().any(axis=1)
        left_out[codes[1][without_meaning], codes[2][without_meaning]] = True
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
    # What any loss has, all should have.
    wanted = (count > 0).any(0) & ~left_out[:, :, None, None]
    missing = wanted & (count == 0)
    by_case = _mean(np.where(missing, worst, total), wanted, 2)

    cases = axes[1][1]
    owner = frame.groupby("case")["patient"].first().reindex(cases)
    owners, patients = pd.factorize(owner, sort=True)
    member = (owners == np.arange(len(patients))[:, None]).astype(float)
    counted = wanted.any(1)
    has = np.einsum("pc,cfs->pfs", member, counted)
    values = np.einsum("pc,lcfs->lpfs", member, np.where(counted, by_case, 0.0)) / np.maximum(has, 1)
    several = ((has > 0).any(-1).sum(-1) > 1).any()
    fold = (has > 0).any(-1).argmax(-1)
    values, kept, balanced = _trainings_in_a_row(values.reshape(*values.shape[:2], -1), has.reshape(len(has), -1) > 0)
    folds = np.zeros(int(kept.sum()), np.intp) if several else np.unique(fold[kept], return_inverse=True)[1].ravel()

    worst_cells = np.bincount(codes[0][failed & ~left_out[codes[1], codes[2]]], minlength=shape[0])
    return Scores(
        metric=metric,
        losses=table.losses,
        patients=_short([str(patient) for patient in patients[np.flatnonzero(kept)]]),
        values=values,
        balanced=balanced,
        lacking={
            loss: tuple(str(case) for case in cases[own])
            for loss, own in zip(table.losses, missing.any((2, 3, 4)), strict=True)
            if own.any()
        },
        failed={loss: int(n) for loss, n in zip(table.losses, worst_cells, strict=True) if n},
        excluded=tuple(str(case) for case in cases[np.flatnonzero(left_out.any(1))]),
        folds=folds.astype(np.intp),
        empty=tuple(str(case) for case in cases[np.flatnonzero(absent.any(1))]),
    )


def misses(table: CaseTable, class_name: str | None = None) -> dict[str, tuple[int, int]]:
    """Loss -> complete misses (nothing of a class is found that is there), and false alarms, over all predictions.

    Args:
        table: checked.
        class_name: of this class alone; else of all.
    """
    frame = table.frame if class_name is None else table.frame[table.frame["class"] == class_name]
    absent = frame[ABSENT].to_numpy(bool)
    overlap = frame[of_overlap(table.metrics)]
    nothing = ((overlap == 0) | overlap.isna()).to_numpy().all(1) & (overlap == 0).to_numpy().any(1)
    alarms = absent & nothing
    for name in having(table.metrics, "value"):
        gap = table.metrics[name].sign * (table.metrics[name].best - frame[name].to_numpy(float))
        wrong = ~frame[RIGHTLY_EMPTY].to_numpy(bool) & (gap > 0)
        alarms = alarms | (absent & wrong)
    found = pd.DataFrame({"loss": frame["loss"], "missed": nothing & ~absent, "alarms": alarms})
    sums = found.groupby("loss")[["missed", "alarms"]].sum().reindex(list(table.losses), fill_value=0)
    return {str(loss): (int(own["missed"]), int(own["alarms"])) for loss, own in sums.iterrows()}


def _short(patients: list[str]) -> tuple[str, ...]:
    """Names without what they were told apart by, where they differ without it, too."""
    short = tuple(patient.split(" ", 1)[1] for patient in patients)
    return short if len(set(short)) == len(short) else tuple(patients)


def _mean(values: Floats, counted: NDArray[np.bool_], axis: int) -> Floats:
    """The mean of those that count, which are the same for all losses (the first axis)."""
    total: Any = np.where(counted, values, 0.0).sum(axis)
    return np.asarray(total / np.maximum(counted.sum(axis - 1), 1))


def _trainings_in_a_row(values: Floats, has: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.bool_], bool]:
    """Each patient's trainings first, whatever they are called; the mean of them where another patient has more."""
    kept = np.asarray(has.any(1))
    values, has = values[:, kept], has[kept]
    most = int(has.sum(1).max(initial=1))
    order = np.argsort(~has, axis=1, kind="stable")[:, :most]
    ordered = np.take_along_axis(values, order[None], 2)
    own = np.take_along_axis(has, order, 1)
    mean = np.where(own, ordered, 0.0).sum(-1, keepdims=True) / np.maximum(own.sum(-1, keepdims=True), 1)
    return np.where(own, ordered, mean), kept, bool(own.all())
