"""Evaluates label maps, in arrays or files, against references: metrics per case and class, in mm."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pandas as pd
from nibabel.imageglobals import LoggingOutputSuppressor
from numpy.typing import NDArray

from pipelines.data.checks import Offence
from pipelines.data.grids import grid_shift, shift_note
from pipelines.data.nifti import BadFileError
from pipelines.data.probabilities import probability_file
from pipelines.evaluation.calibration import Calibration, Probabilities, around, measure
from pipelines.evaluation.metrics import METRICS
from pipelines.evaluation.metrics.base import (
    DEFAULT_SETTINGS,
    ClassMasks,
    Metric,
    MetricSettings,
    default_metrics,
)
from pipelines.evaluation.probabilities import case_probabilities
from pipelines.evaluation.references import Matched, Reference, References, read_pair
from pipelines.utils import UserError
from pipelines.utils.files import NamedFile
from pipelines.utils.text import abbreviated, shown

# Arrays.


def region_metrics(
    prediction: NDArray[np.integer],
    reference: NDArray[np.integer],
    regions: Sequence[tuple[int, ...]],
    spacing: tuple[float, ...],
    *,
    ignored: int | None = None,
    settings: MetricSettings = DEFAULT_SETTINGS,
    probabilities: Probabilities | None = None,
) -> list[dict[str, float]]:
    """The metrics of each region of one case; a region is a label or a union of labels, and regions may overlap.

    A metric is NaN where it is undefined: all but specificity if reference and prediction are both empty, specificity
    if the reference fills the volume, sensitivity if the reference is empty. If only one of the two is empty, metrics
    have their worst values: 0 for Dice, IoU and NSD, the volume's diagonal for HD95 and ASSD. `docs/metrics.md` has all
    of them.

    Args:
        prediction: labels from 0, `[*spatial]`.
        reference: labels from 0, `[*spatial]`.
        regions: the labels of each region.
        spacing: mm, in the order of the array's axes.
        ignored: label of voxels of the reference that do not count: they are outside the volume, in both maps, and the
            border of a region along them is no surface.
        settings: which metrics, the tolerance of the NSD, and what a lesion is.
        probabilities: of the regions, on the same grid; None: metrics that need them are NaN.

    Raises:
        ValueError: the shapes differ, or the spacing has another number of axes.
    """
    found = region_masks(
        prediction, reference, regions, spacing, ignored=ignored, settings=settings, probabilities=probabilities
    )
    return [computed(masks, settings) for masks in found]


def computed(masks: ClassMasks, settings: MetricSettings) -> dict[str, float]:
    """The metrics of one class of one case."""
    return {name: metric.compute(masks) for name, metric in settings.metrics.items()}


def region_masks(
    prediction: NDArray[np.integer],
    reference: NDArray[np.integer],
    regions: Sequence[tuple[int, ...]],
    spacing: tuple[float, ...],
    *,
    ignored: int | None = None,
    settings: MetricSettings = DEFAULT_SETTINGS,
    probabilities: Probabilities | None = None,
) -> Iterator[ClassMasks]:
    """The masks of each region of one case, with arguments and errors as of `region_metrics`."""
    from scipy.ndimage import find_objects  # imported late, since not all commands need it

    shape = reference.shape
    if probabilities is not None and probabilities.data.shape[1:] != shape:
        raise ValueError(f"got probabilities of shape {probabilities.data.shape}; expected [C, *{shape}]")
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
    for number, region in enumerate(regions):
        box = _joined(box[label] for box in boxes for label in region)
        if hidden is not None:  # the neighbours decide what is surface
            box = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in box)
        box = box or (slice(0),) * len(shape)
        pair = [np.logical_or.reduce([labels[box] == label for label in region]) for labels in (prediction, reference)]
        outside = None if hidden is None else hidden[box]
        calibrated = None
        if probabilities is not None and (near := _joined(boxes[1][label] for label in region)):
            near = around(near, shape, spacing)
            truth = np.logical_or.reduce([reference[near] == label for label in region])
            calibrated = measure(probabilities.of(number, near), truth, None if hidden is None else hidden[near])
        yield ClassMasks(
            pair[0],
            pair[1],
            voxels,
            spacing,
            diagonal,
            settings.nsd_tolerance_mm,
            outside,
            settings.lesions,
            calibrated,
        )


def _joined(boxes: Iterable[tuple[slice, ...] | None]) -> tuple[slice, ...]:
    """The smallest box around several; () if there are none."""
    found = [box for box in boxes if box is not None]
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*found, strict=True))


def computed_metrics(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The names of the metrics that rows have, in the order of columns; the default ones if there are no rows."""
    return tuple(name for name in METRICS if name in rows[0]) if rows else default_metrics()


def mean_metrics(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over cases (`case` of a row) of the means over a case's classes; NaN if there are no values."""
    cases: dict[object, list[dict[str, float]]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    return {
        metric: nanmean([nanmean([row[metric] for row in classes]) for classes in cases.values()])
        for metric in computed_metrics(rows)
    }


def class_means(rows: list[dict[str, Any]], classes: Iterable[str]) -> dict[str, dict[str, float]]:
    """Means over cases for each class; NaN for a metric that no case has."""
    names = computed_metrics(rows)
    return {name: {metric: nanmean([row[metric] for row in rows if row["class"] == name]) for metric in names}
            for name in classes}  # fmt: skip


def nanmean(values: list[float]) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    kept = [value for value in values if not math.isnan(value)]
    return float(np.mean(kept)) if kept else math.nan


# Files.


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        classes: names of the classes.
        rows: a row per case and class with `case`, `class` and the metrics.
        counts: class -> number of cases with the class in the label or the prediction.
        metrics: the metrics by name, with their tolerance.
        note: on predictions that are slightly off their labels; None if there are none.
        notes: on metrics that were left out.
        lesions: a row per lesion, if asked for: see `lesion_rows`.
        calibration: (case, class) -> how the probabilities agree with the label, where there are any.
    """

    classes: list[str]
    rows: list[dict[str, Any]]
    counts: dict[str, int]
    metrics: dict[str, Metric]
    note: str | None = None
    lesions: list[dict[str, Any]] = field(default_factory=list)
    calibration: dict[tuple[str, str], Calibration] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def class_means(self) -> dict[str, dict[str, float]]:
        """Means over cases for each class."""
        return class_means(self.rows, self.classes)

    def foreground_means(self) -> dict[str, float]:
        """Means over cases of the means over a case's classes, as in training."""
        return mean_metrics(self.rows)

    def csv(self) -> str:
        """The rows as CSV; undefined metrics are empty, or `nan` in a table without specificity.

        Either shows `statistics.table` that a class is rightly empty; otherwise it would count as a failure.
        """
        undefined = "" if "specificity" in self.metrics else "nan"
        frame = pd.DataFrame(self.rows, columns=["case", "class", *self.metrics])
        return str(frame.to_csv(index=False, na_rep=undefined))


def evaluate(
    predictions: Path,
    references: References,
    matched: Matched,
    settings: MetricSettings | None = None,
    *,
    lesions: bool = False,
    progress: Callable[[], object] | None = None,
) -> Evaluation:
    """Evaluate all pairs of labels and files in the folder `predictions`, several at a time.

    Args:
        predictions: folder of NIfTI label maps.
        references: the labels.
        matched: the pairs, from `match`.
        settings: which metrics, the tolerance of the NSD, and what a lesion is; None: those of the references.
        lesions: whether to list every lesion.
        progress: called after each pair.

    Raises:
        UserError: a file cannot be read, is on another grid than its label, or has values that are not classes; the
            message has one line per bad file.
    """
    scheme = references.scheme
    ignored = None if scheme.ignore is None else len(scheme.values)
    offences: list[Offence] = []
    rows: list[dict[str, Any]] = []
    of_lesions: list[dict[str, Any]] = []
    counts = dict.fromkeys(scheme.names, 0)
    settings, with_probabilities, notes = _available(settings or references.settings, predictions, matched)
    chosen = settings.metrics
    calibration: dict[tuple[str, str], Calibration] = {}
    shifts: dict[str, float] = {}
    failed = Event()

    def evaluate_pair(pair: tuple[Reference, str]) -> tuple[list[Offence], list[_OfClass], float]:
        file = NamedFile(predictions / pair[1], pair[0].name)
        maps, bad = read_pair(pair[0], file, scheme.values, ignore=scheme.ignore, dimensions=references.dimensions)
        if bad:
            failed.set()
        # Once a file is bad, there will be no result, so the others are only checked.
        if failed.is_set():
            return bad, [], 0.0
        (reference, truth), (prediction, predicted) = maps
        probabilities = None
        if pair[1] in with_probabilities:
            path = with_probabilities[pair[1]]
            try:
                probabilities = case_probabilities(path, prediction, predicted, scheme.values, scheme.members)
            except BadFileError as error:
                failed.set()
                return [Offence(str(path), str(error))], [], 0.0
        every = region_masks(
            predicted, truth, scheme.members, reference.spacing, ignored=ignored, settings=settings,
            probabilities=probabilities,
        )  # fmt: skip
        found = [
            _OfClass(
                bool(masks.predicted or masks.present),
                computed(masks, settings),
                lesion_rows(masks) if lesions else [],
                masks.calibration,
            )
            for masks in every
        ]
        return [], found, grid_shift(prediction, reference)

    with LoggingOutputSuppressor(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        results = pool.map(evaluate_pair, matched.pairs)
        for (label, file), (bad, found, shift) in zip(matched.pairs, results, strict=True):
            offences.extend(bad)
            shifts[str(predictions / file)] = shift
            annotated = scheme.annotated(label.labelled)
            for name, is_annotated, of_class in zip(
                scheme.names, annotated, found, strict=False
            ):  # none for a bad file
                if is_annotated:
                    keys = {"case": label.name, "class": name}
                    rows.append(keys | of_class.metrics)
                    of_lesions += [keys | row for row in of_class.lesions]
                    counts[name] += of_class.counts
                    if of_class.calibration is not None:
                        calibration[label.name, name] = of_class.calibration
            if progress is not None:
                progress()
    if offences:
        raise UserError("\n".join(f"{shown(file)}: {reason}" for file, reason in offences))
    note = shift_note(shifts, "prediction", "label")
    return Evaluation(scheme.names, rows, counts, chosen, note, of_lesions, calibration, notes)


def _available(
    settings: MetricSettings, predictions: Path, matched: Matched
) -> tuple[MetricSettings, dict[str, Path], tuple[str, ...]]:
    """The metrics that can be computed, the files of probabilities, and notes on what is missing.

    Raises:
        UserError: no metric is left.
    """
    needing = settings.by_probabilities
    if not needing:
        return settings, {}, ()
    files = {file: found for _, file in matched.pairs if (found := probability_file(predictions / file)) is not None}
    labels = " and ".join(METRICS[name].label for name in needing)
    if files:
        missing = [shown(file) for _, file in matched.pairs if file not in files]
        return settings, files, (f"{labels}: without probabilities: {abbreviated(missing)}",) if missing else ()
    advice = "keep them: medloss predict --probabilities, or nnU-Net's --save_probabilities"
    left = settings.without_probabilities()
    if not left.metrics:
        raise UserError(f"--metrics: {labels}: {shown(predictions)} has no probabilities; {advice}")
    return left, {}, (f"left out, {labels}: {shown(predictions)} has no probabilities; {advice}",)


@dataclass(frozen=True)
class _OfClass:
    """One class of one case: whether label or prediction have it, its metrics, its lesions, and its calibration."""

    counts: bool
    metrics: dict[str, float]
    lesions: list[dict[str, Any]]
    calibration: Calibration | None = None


def lesion_rows(masks: ClassMasks) -> list[dict[str, Any]]:
    """A row per lesion: those of the reference in the order of their first voxels, then the false ones.

    Columns: `lesion` (number from 1), `state` (`matched`, `missed` or `false`), `volume_mm3` (in 2D `area_mm2`) of the
    reference's lesion, or of a false one, `predicted_volume_mm3` of a matched one, `iou`, `dice`, and `hd95_mm`, which
    count as 0, 0 and the volume's diagonal unless matched.
    """
    found = masks.lesions
    size = "volume_mm3" if len(masks.spacing) == 3 else "area_mm2"
    voxel = math.prod(masks.spacing)
    unmatched = {"iou": 0.0, "dice": 0.0, "hd95_mm": masks.diagonal}
    values = zip(found.pairs.tolist(), found.iou, found.dice, found.hd95_mm, strict=True)
    matches = {reference: (predicted, *map(float, of_match)) for (predicted, reference), *of_match in values}
    rows: list[dict[str, Any]] = []
    for number, voxels in enumerate(found.present):
        row = {"state": "missed", size: float(voxels * voxel), f"predicted_{size}": math.nan, **unmatched}
        if number in matches:
            predicted, iou, dice, hd95_mm = matches[number]
            row |= {"state": "matched", f"predicted_{size}": float(found.predicted[predicted] * voxel)}
            row |= {"iou": iou, "dice": dice, "hd95_mm": hd95_mm}
        rows.append(row)
    taken = {predicted for predicted, *_ in matches.values()}
    for number, voxels in enumerate(found.predicted):
        if number not in taken:
            rows.append({"state": "false", size: float(voxels * voxel), f"predicted_{size}": math.nan, **unmatched})
    return [{"lesion": number, **row} for number, row in enumerate(rows, 1)]


def with_strata(rows: list[dict[str, Any]], limits: Sequence[float]) -> pd.DataFrame:
    """The rows of lesions as a table sorted by case, class and number, with a column `stratum`, such as `<= 27 mm^3`.

    Args:
        rows: of `Evaluation.lesions`.
        limits: ascending limits between strata, mm^3 (in 2D mm^2); a lesion of exactly a limit is below it.
    """
    columns = ["case", "class", "lesion", "state", "stratum"]
    frame = pd.DataFrame(rows)
    if not len(frame):
        return pd.DataFrame(columns=[*columns, "volume_mm3", "predicted_volume_mm3", "iou", "dice", "hd95_mm"])
    sizes = [name for name in ("volume_mm3", "area_mm2") if name in frame.columns]
    blocks = []
    for size in sizes:
        unit = size.rpartition("_")[2].replace("mm", "mm^")
        edges = [f"{limit:g}" for limit in limits]
        names = [f"<= {edges[0]} {unit}", *(f"{low} to {high} {unit}" for low, high in pairwise(edges))]
        names.append(f"> {edges[-1]} {unit}")
        of_size = frame[frame[size].notna()]
        # Floats: 27 voxels of 1 mm^3 are exactly 27, but 1000 of 0.3^3 are not.
        place = np.searchsorted(np.array(limits) * (1 + 1e-6), of_size[size])
        blocks.append(of_size.assign(stratum=[names[at] for at in place]))
    return pd.concat(blocks)[[*columns, *(name for name in frame.columns if name not in columns)]]
