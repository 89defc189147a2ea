"""What the pictures of single cases show: which cases, and of each the plane, the slice and the section."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pipelines.report.collect import PredictedCase
from pipelines.statistics.scores import scores
from pipelines.statistics.table import CaseTable

# Which cases are shown: a loss's worst, median and best, and the one on which the losses differ most.

#: Of every training that is shown, beside the primary measure.
_TOLD = ("dice", "hd95_mm")
#: Loss, case, fold and seed to measures.
Measures = dict[tuple[str, str, str, str], dict[str, float | None]]


@dataclass(frozen=True)
class Choice:
    """A case that is shown, and the training by which.

    Attributes:
        which: `worst`, `median`, `best`, `only`, or `most different`.
        predicted: the training's prediction of it.
        score: the loss's primary measure there, all its trainings averaged, as the statistics have it.
        own: measure -> this training's, mean over the classes; None: it has no meaning there, or the table lacks it.
        trainings: over how many predictions the score is averaged.
    """

    which: str
    predicted: PredictedCase
    score: float
    own: dict[str, float | None]
    trainings: int


def case_scores(table: CaseTable, metric: str, empty: str = "one") -> dict[str, dict[str, float]]:
    """Loss -> case -> the measure, made of the rows as the statistics make it, of each case by itself.

    A case is not there where the measure has no meaning.
    """
    # Of patients with several cases the statistics take the mean; a picture is of one.
    single = replace(table, frame=table.frame.assign(patient="case " + table.frame["case"]))
    found = scores(single, metric, empty=empty)
    return {
        loss: dict(zip(found.patients, values, strict=True))
        for loss, values in zip(found.losses, found.by_patient.tolist(), strict=True)
    }


def choose(
    table: CaseTable, metric: str, predictions: Iterable[PredictedCase], empty: str = "one"
) -> dict[str, list[Choice]]:
    """Each loss's worst, median and best case, of those that it has a prediction of; of fewer than three all.

    Of an even number the median is the worse of the two in the middle; of equals the first by name is the worse.

    Args:
        table: the results.
        metric: the primary measure.
        predictions: of the trainings that ended well.
        empty: what counts where the reference has nothing of a class, as the statistics take it.
    """
    by_case = case_scores(table, metric, empty)
    own = _own(table, metric)
    chosen = {}
    for loss, of_loss in _grouped(predictions, by_case).items():
        sign = table.metrics[metric].sign
        order = sorted(of_loss, key=lambda case: (sign * by_case[loss][case], case))
        places = {"worst": 0, "median": (len(order) - 1) // 2, "best": len(order) - 1}
        if len(order) == 2:
            del places["median"]
        if len(order) == 1:
            places = {"only": 0}
        chosen[loss] = [
            _choice(which, of_loss[order[place]], by_case[loss][order[place]], own, metric)
            for which, place in places.items()
        ]
    return chosen


def most_different(
    table: CaseTable, metric: str, predictions: Iterable[PredictedCase], empty: str = "one"
) -> list[Choice]:
    """The case on which the losses' scores have the largest standard deviation: a choice a loss; none if all agree.

    Only cases count of which the most losses have a prediction; of equals the first by name is taken.
    """
    by_case = case_scores(table, metric, empty)
    groups = _grouped(predictions, by_case)
    losses: dict[str, list[str]] = {}
    for loss, of_loss in groups.items():
        for case in of_loss:
            losses.setdefault(case, []).append(loss)
    most = max((len(found) for found in losses.values()), default=0)
    spread = {
        case: float(np.std([by_case[loss][case] for loss in found]))
        for case, found in losses.items()
        if len(found) == most
    }
    if most < 2 or max(spread.values()) == 0:
        return []
    case = min(spread, key=lambda name: (-round(spread[name], 9), name))
    own = _own(table, metric)
    return [_choice("most different", groups[loss][case], by_case[loss][case], own, metric) for loss in losses[case]]


def _grouped(
    predictions: Iterable[PredictedCase], by_case: dict[str, dict[str, float]]
) -> dict[str, dict[str, list[PredictedCase]]]:
    """Loss -> case -> its trainings' predictions, of cases and losses that were compared."""
    groups: dict[str, dict[str, list[PredictedCase]]] = {}
    for one in predictions:
        if one.case in by_case.get(one.loss, {}):
            groups.setdefault(one.loss, {}).setdefault(one.case, []).append(one)
    return groups


def _own(table: CaseTable, metric: str) -> Measures:
    """A training's measures of a case, classes averaged."""
    names = [name for name in dict.fromkeys((metric, *_TOLD)) if name in table.metrics]
    means = table.frame.groupby(["loss", "case", "fold", "seed"])[names].mean()
    return {
        (str(loss), str(case), str(fold), str(seed)): {
            name: float(value) if np.isfinite(value) else None for name, value in zip(names, row, strict=True)
        }
        for (loss, case, fold, seed), row in zip(means.index, means.to_numpy(), strict=True)
    }


def _choice(which: str, predictions: list[PredictedCase], score: float, own: Measures, metric: str) -> Choice:
    """Of several trainings the one that is nearest to their mean."""
    told = {one: own.get((one.loss, one.case, one.fold, one.seed), {}) for one in predictions}

    def distance(one: PredictedCase) -> float:
        value = told[one].get(metric)
        return np.inf if value is None else round(abs(value - score), 9)

    nearest = min(predictions, key=lambda one: (distance(one), one.fold, one.seed))
    return Choice(which, nearest, score, told[nearest], len(predictions))


# What is shown of a case: the plane, the slice, and the section round the object; in mm.

#: Spacings within this share of the largest are as coarse: no acquisition plane can be told from them.
_AS_COARSE = 0.9
#: The margin round the object: shares of the object's longer side, and of the whole slice's.
_OF_OBJECT, _OF_SLICE = 0.3, 0.1
#: At least so many voxels, too.
_LEAST_VOXELS = 4
#: Across a world's axis x, y, z (right, anterior, superior).
PLANES = ("sagittal", "coronal", "axial")
_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))

Labels = NDArray[Any]
Window = tuple[slice, slice]


@dataclass(frozen=True)
class Plane:
    """How slices across one axis of an array are laid out.

    Shown as radiologists do: of axial and coronal slices the patient's right, of sagittal ones the front, at the left.

    Attributes:
        name: `axial`, `coronal` or `sagittal`; empty for a 2D image.
        across: the array's axis that is cut; None for a 2D image.
        rows: the array's axis that is drawn upwards.
        columns: the array's axis that is drawn to the right.
        flips: whether rows, and columns, run the other way in the array.
        spacing: mm of rows and columns.
        letters: at the left, right, lower and upper edge; empty for a 2D image.
    """

    name: str
    across: int | None
    rows: int
    columns: int
    flips: tuple[bool, bool]
    spacing: tuple[float, float]
    letters: tuple[str, ...] = ()

    def cut(self, array: NDArray[Any], index: int) -> NDArray[Any]:
        """One slice, `[rows, columns]`, rows drawn upwards."""
        flat = array if self.across is None else np.take(array, index, self.across)
        flat = flat if self.rows < self.columns else flat.T
        return flat[:: -1 if self.flips[0] else 1, :: -1 if self.flips[1] else 1]


def planes(shape: Sequence[int], spacing: Sequence[float], affine: NDArray[np.float64]) -> list[Plane]:
    """The planes in which a case may be shown.

    Of anisotropic voxels it is one, the acquisition's: across the axis of the greatest spacing. Of several axes of the
    same spacing each may be cut: `largest_section` says which plane shows most.

    Args:
        shape: voxels an axis, 2 or 3.
        spacing: mm an axis.
        affine: `[4, 4]`, voxel to mm: right, anterior, superior.
    """
    world, rising = _directions(affine, len(shape))
    if len(shape) == 2:
        return [_plane(None, world, rising, spacing)]
    single = [axis for axis in range(3) if shape[axis] == 1]
    coarse = [axis for axis in range(3) if spacing[axis] >= _AS_COARSE * max(spacing)]
    return [_plane(across, world, rising, spacing) for across in single[-1:] or coarse]


def _directions(affine: NDArray[np.float64], axes: int) -> tuple[list[int], list[bool]]:
    """Of each array axis the world's axis that it runs along, and whether it rises there."""
    orientation = nib.io_orientation(affine)[:axes]
    return [int(axis) for axis, _ in orientation], [bool(sign > 0) for _, sign in orientation]


def _plane(across: int | None, world: list[int], rising: list[bool], spacing: Sequence[float]) -> Plane:
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


def largest_section(labels: Labels, plane: Plane) -> float:
    """The object's largest section in a plane, mm2."""
    counts = _counts(labels != 0, plane)
    return float(counts.max(initial=0)) * plane.spacing[0] * plane.spacing[1]


def telling_slice(reference: Labels, predictions: Iterable[Labels], plane: Plane) -> int:
    """The slice on which predictions and reference differ most, over all predictions.

    Where none differs it is the one with the largest section of the reference; without one, the middle. Of equals the
    first.
    """
    wrong = np.zeros(_length(reference, plane), np.int64)
    for prediction in predictions:
        wrong += _counts(prediction != reference, plane)
    if not wrong.any():
        wrong = _counts(reference != 0, plane)
    return int(np.argmax(wrong)) if wrong.any() else len(wrong) // 2


def _length(labels: Labels, plane: Plane) -> int:
    return 1 if plane.across is None else labels.shape[plane.across]


def _counts(mask: NDArray[np.bool_], plane: Plane) -> NDArray[np.int64]:
    """Voxels of each slice."""
    return np.asarray(np.count_nonzero(mask, axis=(plane.rows, plane.columns)), np.int64).reshape(-1)


def window(mask: NDArray[np.bool_], spacing: tuple[float, float]) -> Window:
    """The section of a slice that is shown: the object with a margin, and as square, in mm, as the slice allows.

    The margin is 0.3 of the object's longer side and 0.1 of the slice's: so of a small object one still sees where it
    lies. Of no object the whole slice is shown.

    Args:
        mask: the object, `[rows, columns]`.
        spacing: mm of rows and columns.
    """
    if not mask.any():
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    extents = [n * s for n, s in zip(mask.shape, spacing, strict=True)]
    bounds = [np.flatnonzero(mask.any(1 - axis))[[0, -1]] for axis in (0, 1)]
    sides = [(last + 1 - first) * s for (first, last), s in zip(bounds, spacing, strict=True)]
    margin = max(_OF_OBJECT * max(sides) + _OF_SLICE * max(extents), _LEAST_VOXELS * max(spacing))
    side = max(sides) + 2 * margin
    rows, columns = (_span(bounds[axis], side / spacing[axis], mask.shape[axis]) for axis in (0, 1))
    return rows, columns


def _span(bounds: NDArray[np.int64], length: float, available: int) -> slice:
    """So many voxels round the object's first and last, moved inwards where the slice ends."""
    voxels = min(int(np.ceil(length)), available)
    start = round((bounds.sum() + 1 - voxels) / 2)
    start = min(max(start, 0), available - voxels)
    return slice(int(start), int(start + voxels))
