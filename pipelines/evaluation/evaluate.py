"""Evaluates label maps, in arrays or files, against references: metrics per case and class, in mm."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from nibabel.imageglobals import LoggingOutputSuppressor
from numpy.typing import NDArray

from pipelines.data.checks import Offence
from pipelines.data.nifti import grid_shift, shift_note
from pipelines.evaluation.metrics import METRICS
from pipelines.evaluation.metrics.base import ClassMasks
from pipelines.evaluation.references import Matched, Reference, References, read_pair
from pipelines.utils import UserError
from pipelines.utils.files import NamedFile
from pipelines.utils.text import shown

if TYPE_CHECKING:
    from torch import Tensor

# Arrays.

#: Default tolerance of the NSD: about a voxel of common MR and CT grids. The difference between raters is a better
#: choice.
NSD_TOLERANCE_MM = 1.0


def case_metrics(
    prediction: Tensor,
    reference: Tensor,
    num_classes: int,
    spacing: tuple[float, ...],
    *,
    nsd_tolerance_mm: float = NSD_TOLERANCE_MM,
) -> list[dict[str, float]]:
    """The metrics of each foreground class of one case, by name, in the order of `METRICS`.

    Prediction and reference are labels 0..C-1, `[*spatial]`; spacing (per axis) and tolerance of the NSD are in mm.

    Raises:
        ValueError: the shapes differ, or the spacing has another number of axes.
    """
    regions = [(c,) for c in range(1, num_classes)]
    maps = prediction.cpu().numpy(), reference.cpu().numpy()
    return region_metrics(*maps, regions, spacing, nsd_tolerance_mm=nsd_tolerance_mm)


def region_metrics(
    prediction: NDArray[np.integer],
    reference: NDArray[np.integer],
    regions: Sequence[tuple[int, ...]],
    spacing: tuple[float, ...],
    *,
    ignored: int | None = None,
    nsd_tolerance_mm: float = NSD_TOLERANCE_MM,
) -> list[dict[str, float]]:
    """The metrics of each region of one case; a region is a label or a union of labels, and regions may overlap.

    A metric is NaN where it is undefined: all but specificity if reference and prediction are both empty, specificity
    if the reference fills the volume, sensitivity if the reference is empty. If only one of the two is empty, metrics
    have their worst values: 0 for Dice, IoU and NSD, the volume's diagonal for HD95 and ASSD.

    Args:
        prediction: labels from 0, `[*spatial]`.
        reference: labels from 0, `[*spatial]`.
        regions: the labels of each region.
        spacing: mm, in the order of the array's axes.
        ignored: label of voxels of the reference that do not count: they are outside the volume, in both maps, and the
            border of a region along them is no surface.
        nsd_tolerance_mm: tolerance of the NSD, mm.

    Raises:
        ValueError: the shapes differ, or the spacing has another number of axes.
    """
    from scipy.ndimage import find_objects  # imported late, since not all commands need it

    shape = reference.shape
    if prediction.shape != shape or len(spacing) != len(shape):
        raise ValueError(f"got shapes {prediction.shape} and {shape} and spacing {spacing}; expected the same axes")
    diagonal = math.hypot(*(n * s for n, s in zip(shape, spacing, strict=True)))
    hidden = None if ignored is None else reference == ignored
    voxels = reference.size - (0 if hidden is None else int(np.count_nonzero(hidden)))
    if hidden is not None:
        prediction = np.where(hidden, reference, prediction)
    # Metrics only depend on the bounding box of a class, so the volume is read once rather than once per class.
    highest = max((label for region in regions for label in region), default=0)
    boxes = [[tuple(slice(0, n) for n in shape), *find_objects(labels, highest)] for labels in (prediction, reference)]
    metrics = []
    for region in regions:
        found = [box[label] for box in boxes for label in region if box[label] is not None]
        # The smallest box around all of them; an empty one if there are none.
        box = tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*found, strict=True))
        if hidden is not None:  # the neighbours decide what is surface
            box = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in box)
        box = box or (slice(0),) * len(shape)
        pair = [np.logical_or.reduce([labels[box] == label for label in region]) for labels in (prediction, reference)]
        outside = None if hidden is None else hidden[box]
        masks = ClassMasks(pair[0], pair[1], voxels, spacing, diagonal, nsd_tolerance_mm, outside)
        metrics.append({name: metric.compute(masks) for name, metric in METRICS.items()})
    return metrics


def mean_metrics(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over cases (`case` of a row) of the means over a case's classes; NaN if there are no values."""
    cases: dict[object, list[dict[str, float]]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    return {
        metric: nanmean([nanmean([row[metric] for row in classes]) for classes in cases.values()]) for metric in METRICS
    }


def class_means(rows: list[dict[str, Any]], classes: Iterable[str]) -> dict[str, dict[str, float]]:
    """Means over cases for each class; NaN for a metric that no case has."""
    return {name: {metric: nanmean([row[metric] for row in rows if row["class"] == name]) for metric in METRICS}
            for name in classes}  # fmt: skip


def nanmean(values: list[float]) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    kept = [value for value in values if not math.isnan(value)]
    return float(np.mean(kept)) if kept else math.nan


# Files.


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation: a row per case and class with `case`, `class` and the metrics.

    The note is on predictions that are slightly off their labels; None if there are none.
    """

    classes: list[str]
    rows: list[dict[str, Any]]
    note: str | None = None

    def cases(self, name: str) -> int:
        """Number of cases with a class in the label or the prediction."""
        return sum(row["class"] == name and not math.isnan(row["dice"]) for row in self.rows)

    def class_means(self) -> dict[str, dict[str, float]]:
        """Means over cases for each class."""
        return class_means(self.rows, self.classes)

    def foreground_means(self) -> dict[str, float]:
        """Means over cases of the means over a case's classes, as in training."""
        return mean_metrics(self.rows)

    def csv(self) -> str:
        """The rows as CSV; undefined metrics are empty."""
        return str(pd.DataFrame(self.rows, columns=["case", "class", *METRICS]).to_csv(index=False))


def evaluate(
    predictions: Path,
    references: References,
    matched: Matched,
    *,
    nsd_tolerance_mm: float = NSD_TOLERANCE_MM,
    progress: Callable[[], object] | None = None,
) -> Evaluation:
    """Evaluate all pairs of labels and files in the folder `predictions`, several at a time.

    Args:
        predictions: folder of NIfTI label maps.
        references: the labels.
        matched: the pairs, from `match`.
        nsd_tolerance_mm: tolerance of the NSD, mm.
        progress: called after each pair.

    Raises:
        UserError: a file cannot be read, is on another grid than its label, or has values that are not classes; the
            message has one line per bad file.
    """
    if not math.isfinite(nsd_tolerance_mm) or nsd_tolerance_mm < 0:
        raise UserError(f"--tolerance: got {nsd_tolerance_mm}; expected a finite number of mm, 0 or more")
    scheme = references.scheme
    ignored = None if scheme.ignore is None else len(scheme.values)
    offences: list[Offence] = []
    rows: list[dict[str, Any]] = []
    shifts: dict[str, float] = {}
    failed = Event()

    def evaluate_pair(pair: tuple[Reference, str]) -> tuple[list[Offence], list[dict[str, float]], float]:
        file = NamedFile(predictions / pair[1], pair[0].name)
        maps, bad = read_pair(pair[0], file, scheme.values, ignore=scheme.ignore, dimensions=references.dimensions)
        if bad:
            failed.set()
        # Once a file is bad, there will be no result, so the others are only checked.
        if failed.is_set():
            return bad, [], 0.0
        (reference, truth), (prediction, predicted) = maps
        metrics = region_metrics(
            predicted, truth, scheme.members, reference.spacing, ignored=ignored, nsd_tolerance_mm=nsd_tolerance_mm
        )
        return [], metrics, grid_shift(prediction, reference)

    with LoggingOutputSuppressor(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        results = pool.map(evaluate_pair, matched.pairs)
        for (label, file), (bad, metrics, shift) in zip(matched.pairs, results, strict=True):
            offences.extend(bad)
            shifts[str(predictions / file)] = shift
            annotated = scheme.annotated(label.labelled)
            rows.extend(
                {"case": label.name, "class": name, **of_class}
                for name, counts, of_class in zip(scheme.names, annotated, metrics, strict=False)  # none for a bad file
                if counts
            )
            if progress is not None:
                progress()
    if offences:
        raise UserError("\n".join(f"{shown(file)}: {reason}" for file, reason in offences))
    return Evaluation(scheme.names, rows, shift_note(shifts, "prediction", "label"))
