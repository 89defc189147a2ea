"""From rows to one number a loss and patient: what is missing, what counts as worst, and what is averaged.

A prediction that is missing or failed counts as the worst: 0, or of a distance the largest one in the table, of its
class alone where that is looked at alone (a distance has no bound; so the true cost of a failure is understated there).
It never drops out, since a loss that fails on the hard cases would gain by it. So count: a loss's rows that are not
there although another loss has that case, class and seed; an infinite distance; an empty cell.

A measure that has no meaning is left out for all losses alike, case and class: reference and prediction both empty,
so there is nothing to overlap. An empty cell is that

- of sensitivity (empty reference) and specificity (full reference), when the row has any other measure;
- of the others, when the row has a specificity, and no overlap measure (Dice, IoU, sensitivity);
- of any measure, when no loss has a value there.

So a loss that finds something where there is nothing is not punished by Dice there: its specificity shows it. A table
without specificity cannot tell the two apart, and the empty cell counts as worst.

Order of averaging: folds (repeats) of a seed, then classes of a case, cases of a patient, and seeds last.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.comparison.statistics.metrics import METRICS, Metric
from pipelines.comparison.statistics.table import CaseTable

Floats = NDArray[np.float64]
#: Digits that are kept before two values are called equal: beyond are rounding errors of sums.
DIGITS = 10
_OVERLAP = ("dice", "iou", "sensitivity")


@dataclass(frozen=True)
class Scores:
    """One measure's values.

    Attributes:
        metric: the measure.
        losses: their names `[L]`.
        patients: their names `[n]`.
        values: `[L, n, S]`, patients by seeds (S = 1: one training), in the measure's own unit.
        balanced: every patient has all seeds; otherwise the mean of those it has stands for the others.
        lacking: loss -> cases of which it has no row, and others do.
        failed: loss -> how many of its empty or infinite cells counted as worst.
        excluded: cases of which a class, or all, were left out since the measure has no meaning there.
    """

    metric: Metric
    losses: tuple[str, ...]
    patients: tuple[str, ...]
    values: Floats
    balanced: bool
    lacking: dict[str, tuple[str, ...]]
    failed: dict[str, int]
    excluded: tuple[str, ...]

    @property
    def by_patient(self) -> Floats:
        """`[L, n]`: seeds averaged."""
        return np.round(self.values.mean(-1), DIGITS)


def scores(table: CaseTable, name: str, class_name: str | None = None) -> Scores:
    """One measure's values, a loss and patient.

    Args:
        table: checked.
        name: the measure.
        class_name: of this class alone; else the mean over a case's classes.
    """
    metric = METRICS[name]
    frame = table.frame if class_name is None else table.frame[table.frame["class"] == class_name]
    rows = frame[name].to_numpy(float, copy=True)
    empty = ~np.isfinite(rows)
    axes = [pd.factorize(frame[key], sort=True) for key in ("loss", "case", "class", "seed")]
    codes = [codes for codes, _ in axes]
    shape = (len(table.losses), *(len(names) for _, names in axes[1:]))
    codes[0] = np.searchsorted(table.losses, frame["loss"].to_numpy(str))

    left_out = np.zeros(shape[1:3], bool)
    without_meaning = np.isnan(rows) & _has_no_meaning(frame, table.metrics, name)
    left_out[codes[1][without_meaning], codes[2][without_meaning]] = True
    known = np.zeros(shape[1:3], bool)
    told = ~np.isnan(rows)
    known[codes[1][told], codes[2][told]] = True
    there = np.zeros(shape[1:3], bool)
    there[codes[1], codes[2]] = True
    left_out |= there & ~known

    worst = metric.worst(float(rows[~empty].max(initial=0.0)))
    rows[empty] = worst
    at = tuple(codes)
    count = np.zeros(shape)
    total = np.zeros(shape)
    np.add.at(count, at, 1)
    np.add.at(total, at, rows)
    # What any loss has, all should have.
    wanted = (count > 0).any(0) & ~left_out[..., None]
    missing = wanted & (count == 0)
    cells = np.where(missing, worst, total / np.maximum(count, 1))

    by_case = _mean(cells, wanted, 2)
    cases = axes[1][1]
    owner = frame.groupby("case")["patient"].first().reindex(cases)
    owners, patients = pd.factorize(owner, sort=True)
    member = (owners == np.arange(len(patients))[:, None]).astype(float)
    filled = np.where(wanted.any(1), by_case, 0.0)
    has = member @ wanted.any(1)
    values = np.einsum("pc,lcs->lps", member, filled) / np.maximum(has, 1)
    values, kept, balanced = _seeds_in_a_row(values, has > 0)

    counted = empty & ~left_out[codes[1], codes[2]]
    failed = np.bincount(codes[0][counted], minlength=shape[0])
    return Scores(
        metric=metric,
        losses=table.losses,
        patients=_short([str(patient) for patient in patients[np.flatnonzero(kept)]]),
        values=values,
        balanced=balanced,
        lacking={
            loss: tuple(str(case) for case in cases[own])
            for loss, own in zip(table.losses, missing.any((2, 3)), strict=True)
            if own.any()
        },
        failed={loss: int(n) for loss, n in zip(table.losses, failed, strict=True) if n},
        excluded=tuple(str(case) for case in cases[np.flatnonzero(left_out.any(1))]),
    )


def _short(patients: list[str]) -> tuple[str, ...]:
    """Names without what they were told apart by, where they differ without it, too."""
    short = tuple(patient.split(" ", 1)[1] for patient in patients)
    return short if len(set(short)) == len(short) else tuple(patients)


def _has_no_meaning(frame: pd.DataFrame, metrics: tuple[str, ...], name: str) -> NDArray[np.bool_]:
    others = [metric for metric in metrics if metric != name]
    if name in ("sensitivity", "specificity"):
        return np.asarray(frame[others].notna().to_numpy().any(1))
    if "specificity" not in metrics:
        return np.zeros(len(frame), bool)
    overlap = [metric for metric in _OVERLAP if metric in metrics]
    return frame["specificity"].notna().to_numpy() & frame[overlap].isna().to_numpy().all(1)


def _mean(values: Floats, counted: NDArray[np.bool_], axis: int) -> Floats:
    """The mean of those that count, which are the same for all losses (the first axis)."""
    total: Any = np.where(counted, values, 0.0).sum(axis)
    return np.asarray(total / np.maximum(counted.sum(axis - 1), 1))


def _seeds_in_a_row(values: Floats, has: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.bool_], bool]:
    """Each patient's seeds first, whatever they are called; the mean of them where another patient has more."""
    kept = np.asarray(has.any(1))
    values, has = values[:, kept], has[kept]
    most = int(has.sum(1).max(initial=1))
    order = np.argsort(~has, axis=1, kind="stable")[:, :most]
    ordered = np.take_along_axis(values, order[None], 2)
    own = np.take_along_axis(has, order, 1)
    mean = np.where(own, ordered, 0.0).sum(-1, keepdims=True) / np.maximum(own.sum(-1, keepdims=True), 1)
    return np.where(own, ordered, mean), kept, bool(own.all())
