"""Selects what the pictures of individual cases show: the cases, and for each the plane, the slice and the section."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.report.collect import PredictedCase
from pipelines.statistics.scores import scores
from pipelines.statistics.table import ABSENT, RIGHTLY_EMPTY, CaseTable

# The cases: worst, median and best of each loss, and the one on which the losses differ most.


@dataclass(frozen=True)
class Choice:
    """A case that is shown, with the prediction of one run.

    Attributes:
        which: `worst`, `median`, `best`, `only`, or `most different`.
        predicted: the prediction.
        score: the primary metric of the loss for this case, averaged over the runs, as in the statistics.
        metrics: metric -> value of this run, mean over the classes; `None` if it is undefined or missing in the table.
        runs: number of predictions over which the score is averaged.
        classes: class -> the primary metric of this run; `None` as in `metrics`. Empty if there is only one.
    """

    which: str
    predicted: PredictedCase
    score: float
    metrics: dict[str, float | None]
    runs: int
    classes: dict[str, float | None] = field(default_factory=dict)


def case_scores(table: CaseTable, metric: str, empty: str = "one") -> dict[str, dict[str, float]]:
    """Loss -> case -> the metric as the statistics compute it, without cases in which it is undefined."""
    # The statistics average over the cases of a patient; a picture shows a single case.
    single = replace(table, frame=table.frame.assign(patient="case " + table.frame["case"]))
    found = scores(single, metric, empty=empty)
    of_losses = zip(found.losses, found.by_patient.tolist(), strict=True)
    return {loss: dict(zip(found.patients, values, strict=True)) for loss, values in of_losses}


def choose(
    table: CaseTable, metric: str, predictions: Iterable[PredictedCase], empty: str = "one"
) -> dict[str, list[Choice]]:
    """Select the worst, median and best case of each loss among its predictions; with fewer than three cases, all.

    For an even number of cases, the median is the worse of the two in the middle. Ties are ordered by name.

    Args:
        table: the results.
        metric: the primary metric.
        predictions: predictions of the finished runs.
        empty: the rule for cases whose reference is empty for a class, as in the statistics.
    """
    sign, chosen = table.metrics[metric].sign, {}
    for loss, of_loss in _candidates(table, metric, predictions, empty).items():
        order = sorted(of_loss.values(), key=lambda choice: (sign * choice.score, choice.predicted.case))
        places = {"worst": 0, "median": (len(order) - 1) // 2, "best": len(order) - 1}
        if len(order) == 2:
            del places["median"]
        if len(order) == 1:
            places = {"only": 0}
        chosen[loss] = [replace(order[place], which=which) for which, place in places.items()]
    return chosen


def most_different(
    table: CaseTable, metric: str, predictions: Iterable[PredictedCase], empty: str = "one"
) -> list[Choice]:
    """Select the case with the largest standard deviation over the losses: one choice per loss; none if all agree.

    Only cases with predictions of the largest number of losses are considered. Among equals, the first by name is
    selected.
    """
    by_case: dict[str, list[Choice]] = {}
    for of_loss in _candidates(table, metric, predictions, empty).values():
        for case, choice in of_loss.items():
            by_case.setdefault(case, []).append(choice)
    most = max(map(len, by_case.values()), default=0)
    spread = {
        case: round(float(np.std([choice.score for choice in choices])), 9)
        for case, choices in by_case.items()
        if len(choices) == most
    }
    if most < 2 or not any(spread.values()):
        return []
    case = min(spread, key=lambda name: (-spread[name], name))
    return [replace(choice, which="most different") for choice in by_case[case]]


def _candidates(
    table: CaseTable, metric: str, predictions: Iterable[PredictedCase], empty: str
) -> dict[str, dict[str, Choice]]:
    """Loss -> case -> the prediction of the run that is closest to the mean of all runs."""
    by_case = case_scores(table, metric, empty)
    # Every picture reports Dice and HD95, next to the primary metric.
    names = [name for name in dict.fromkeys((metric, "dice", "hd95_mm")) if name in table.metrics]
    counted = table.frame.assign(**{name: _as_counted(table, name, empty) for name in names})
    means = counted.groupby(["loss", "case", "fold", "seed"])[names].mean()
    of_runs: Any = means.astype(object).where(np.isfinite(means), None).to_dict("index")
    by_class: dict[tuple[str, ...], dict[str, float | None]] = {}
    if len(table.classes) > 1:
        for *key, name, value in counted[["loss", "case", "fold", "seed", "class", metric]].itertuples(index=False):
            by_class.setdefault(tuple(key), {})[name] = value if np.isfinite(value) else None
    groups: dict[tuple[str, str], list[PredictedCase]] = {}
    for one in predictions:
        if one.case in by_case.get(one.loss, {}):
            groups.setdefault((one.loss, one.case), []).append(one)
    found: dict[str, dict[str, Choice]] = {}
    for (loss, case), runs in groups.items():
        score = by_case[loss][case]

        def distance(one: PredictedCase, score: float = score) -> tuple[float, str, str]:
            value = of_runs.get((one.loss, one.case, one.fold, one.seed), {}).get(metric)
            return np.inf if value is None else round(abs(value - score), 9), one.fold, one.seed

        nearest = min(runs, key=distance)
        run = (loss, case, nearest.fold, nearest.seed)
        chosen = Choice("", nearest, score, of_runs.get(run, {}), len(runs), by_class.get(run, {}))
        found.setdefault(loss, {})[case] = chosen
    return found


def _as_counted(table: CaseTable, name: str, empty: str) -> pd.Series:
    """A metric's cells, where the reference is empty for a class as `scores` counts them; NaN where left out."""
    metric, frame = table.metrics[name], table.frame
    values = frame[name].astype(float).copy()
    option = metric.empty_reference == "option"
    if option and empty != "exclude":
        worst = metric.worst(float(values[np.isfinite(values)].max() if np.isfinite(values).any() else 0.0))
        values[frame[RIGHTLY_EMPTY] & values.isna()] = metric.best if empty == "one" else worst
    elif option or metric.empty_reference == "left out":
        values[frame[ABSENT]] = np.nan
    return values


# The plane, the slice, and the section around the object; in mm.

#: Spacings of at least this share of the largest one count as equal to it.
_AS_COARSE = 0.9
#: The planes perpendicular to the world axes x, y, z (right, anterior, superior).
PLANES = ("sagittal", "coronal", "axial")
_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))

Labels = NDArray[Any]


@dataclass(frozen=True)
class Plane:
    """The layout of slices perpendicular to one axis of an array.

    Slices have the radiological orientation: the patient's right is at the left in axial and coronal slices, the front
    in sagittal ones.

    Attributes:
        name: `axial`, `coronal` or `sagittal`; empty for a 2D image.
        across: the array axis that is cut; `None` for a 2D image.
        rows: the array axis that is drawn upwards.
        columns: the array axis that is drawn to the right.
        flips: whether rows, and columns, run in the opposite direction in the array.
        spacing: spacing of rows and columns in mm.
        letters: letters at the left, right, lower and upper edge; empty for a 2D image.
    """

    name: str
    across: int | None
    rows: int
    columns: int
    flips: tuple[bool, bool]
    spacing: tuple[float, float]
    letters: tuple[str, ...] = ()

    def cut(self, array: NDArray[Any], index: int) -> NDArray[Any]:
        """One slice, `[rows, columns]`, with rows drawn upwards."""
        flat = array if self.across is None else np.take(array, index, self.across)
        flat = flat if self.rows < self.columns else flat.T
        return flat[:: -1 if self.flips[0] else 1, :: -1 if self.flips[1] else 1]


def planes(shape: Sequence[int], spacing: Sequence[float], affine: NDArray[np.float64]) -> list[Plane]:
    """The planes in which a case may be shown.

    With anisotropic voxels this is the plane of acquisition, perpendicular to the axis with the largest spacing. If
    several axes have that spacing, each may be cut; `largest_section` shows which plane is best.

    Args:
        shape: number of voxels per axis, for 2 or 3 axes.
        spacing: spacing per axis in mm.
        affine: `[4, 4]`, from voxels to mm (right, anterior, superior).
    """
    orientation = nib.io_orientation(affine)[: len(shape)]
    # The world axis that each array axis follows, and whether in its positive direction.
    world, rising = [int(axis) for axis, _ in orientation], [bool(sign > 0) for _, sign in orientation]

    def plane(across: int | None) -> Plane:
        columns, rows = sorted((axis for axis in range(len(world)) if axis != across), key=lambda axis: world[axis])
        return Plane(
            name="" if across is None else PLANES[world[across]],
            across=across,
            rows=rows,
            columns=columns,
            flips=(not rising[rows], rising[columns]),
            spacing=(float(spacing[rows]), float(spacing[columns])),
            letters=() if across is None else (*_LETTERS[world[columns]][::-1], *_LETTERS[world[rows]]),
        )

    if len(shape) == 2:
        return [plane(None)]
    single = [axis for axis in range(3) if shape[axis] == 1]
    coarse = [axis for axis in range(3) if spacing[axis] >= _AS_COARSE * max(spacing)]
    return [plane(across) for across in single[-1:] or coarse]


def largest_section(labels: Labels, plane: Plane) -> float:
    """The area of the object's largest section in a plane, mm2."""
    return float(_counts(labels != 0, plane).max(initial=0)) * plane.spacing[0] * plane.spacing[1]


def select_slice(reference: Labels, predictions: Iterable[Labels], plane: Plane) -> int:
    """The slice with the most voxels that differ from the reference, over all predictions.

    If there are none, it is the slice with the largest section of the reference; if the reference is empty, the middle.
    Among equals it is the first.
    """
    counts = _counts(reference != 0, plane)
    wrong = sum((_counts(labels != reference, plane) for labels in predictions), np.zeros_like(counts))
    counts = wrong if wrong.any() else counts
    return int(np.argmax(counts)) if counts.any() else len(counts) // 2


def _counts(mask: NDArray[np.bool_], plane: Plane) -> NDArray[np.int64]:
    """The number of voxels in each slice."""
    return np.asarray(np.count_nonzero(mask, axis=(plane.rows, plane.columns)), np.int64).reshape(-1)


def window(mask: NDArray[np.bool_], spacing: tuple[float, float]) -> tuple[slice, slice]:
    """The section of a slice that is shown: the object with a margin, as square (in mm) as the slice allows.

    The margin is 0.3 of the object's longer side plus 0.1 of the slice's, and at least 4 voxels, so that the position
    of a small object remains visible. Without an object the whole slice is shown.

    Args:
        mask: the object, `[rows, columns]`.
        spacing: spacing of rows and columns in mm.
    """
    if not mask.any():
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    extents = [n * s for n, s in zip(mask.shape, spacing, strict=True)]
    bounds = [np.flatnonzero(mask.any(1 - axis))[[0, -1]] for axis in (0, 1)]
    sides = [(last + 1 - first) * s for (first, last), s in zip(bounds, spacing, strict=True)]
    margin = max(0.3 * max(sides) + 0.1 * max(extents), 4 * max(spacing))
    side = max(sides) + 2 * margin
    spans = []
    for (first, last), available, step in zip(bounds, mask.shape, spacing, strict=True):
        # Centred on the object, and moved inwards at the border of the slice.
        voxels = min(int(np.ceil(side / step)), available)
        start = int(min(max(round((first + last + 1 - voxels) / 2), 0), available - voxels))
        spans.append(slice(start, start + voxels))
    return spans[0], spans[1]
