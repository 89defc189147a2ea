"""Evaluates label maps against references, per case and class, in mm by the references' spacing: arrays and files."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from nibabel.imageglobals import LoggingOutputSuppressor
from numpy.typing import NDArray

from pipelines.data.checks import Offence
from pipelines.data.nifti import BadFileError, grid_problem, grid_shift, read_labels, shift_note
from pipelines.evaluation.metrics import METRICS
from pipelines.evaluation.metrics.base import ClassMasks
from pipelines.evaluation.references import Matched, Reference, References, label_channels, shown
from pipelines.utils import UserError

# What a segmentation is worth, case by case and class by class: overlap, and distances between surfaces in mm.

if TYPE_CHECKING:  # the names of the measures are asked for by commands that do not wait for torch
    from torch import Tensor

#: The NSD's tolerance by default: about a voxel of common MR and CT grids. What raters differ by is the better choice.
NSD_TOLERANCE_MM = 1.0


def case_metrics(
    prediction: Tensor,
    reference: Tensor,
    num_classes: int,
    spacing: tuple[float, ...],
    *,
    nsd_tolerance_mm: float = NSD_TOLERANCE_MM,
) -> list[dict[str, float]]:
    """The metrics of each foreground class of one case: by name, in the order of `METRICS`.

    Args:
        prediction: labels 0..C-1, `[*spatial]`, of any whole-number type.
        reference: labels 0..C-1, `[*spatial]`.
        num_classes: C.
        spacing: mm, in the order of the array's axes.
        nsd_tolerance_mm: up to where a surface's distance is no error to the NSD.

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
    not_counted: int | None = None,
    nsd_tolerance_mm: float = NSD_TOLERANCE_MM,
) -> list[dict[str, float]]:
    """The metrics of each region of one case: a union of labels, or one label.

    NaN where a metric has no value: all but specificity when reference and prediction are both empty, specificity when
    the reference fills the volume, sensitivity when the reference is empty. One of the two empty: Dice, IoU and NSD are
    0, HD95 and ASSD the volume's diagonal, the worst there is.

    Args:
        prediction: labels from 0, `[*spatial]`.
        reference: labels from 0, `[*spatial]`.
        regions: the labels of each; they may overlap.
        spacing: mm, in the order of the array's axes.
        not_counted: a label, in both maps at the same voxels and in no region, whose voxels are outside everything,
            and not counted among the volume's.
        nsd_tolerance_mm: up to where a surface's distance is no error to the NSD.

    Raises:
        ValueError: the shapes differ, or the spacing has another number of axes.
    """
    # Not above: commands that only need the names of the metrics do not wait for scipy.
    from scipy.ndimage import find_objects

    maps = prediction, reference
    if maps[0].shape != maps[1].shape or len(spacing) != maps[0].ndim:
        shapes = f"{maps[0].shape} and {maps[1].shape}"
        raise ValueError(f"case_metrics: got shapes {shapes} and spacing {spacing}; expected the same axes")
    diagonal = math.hypot(*(n * s for n, s in zip(maps[0].shape, spacing, strict=True)))
    voxels = maps[0].size - (0 if not_counted is None else int(np.count_nonzero(maps[1] == not_counted)))
    # What is measured of a class lies within the box around it: the volume is passed over once, not once a class.
    most = max((label for region in regions for label in region), default=0)
    boxes = [find_objects(labels, most) for labels in maps]
    whole = tuple(slice(0, n) for n in maps[0].shape)
    measures = []
    for region in regions:
        found = [whole if c == 0 else own[c - 1] for own in boxes for c in region]
        box = _union([one for one in found if one is not None])
        none = np.zeros((0,) * maps[0].ndim, bool)
        pair = [none if box is None else _mask(labels[box], region) for labels in maps]
        masks = ClassMasks(pair[0], pair[1], voxels, spacing, diagonal, nsd_tolerance_mm)
        measures.append({name: metric.compute(masks) for name, metric in METRICS.items()})
    return measures


def _mask(labels: NDArray[np.integer], region: tuple[int, ...]) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = labels == region[0]
    for label in region[1:]:
        mask |= labels == label
    return mask


def _union(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...] | None:
    """The smallest box around all; None without any."""
    if not boxes:
        return None
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))


def mean_metrics(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over cases of the means over a case's classes; NaN where nothing counts.

    Args:
        rows: one a case and class, each with `case` and the measures.
    """
    cases: dict[object, list[dict[str, float]]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    return {
        metric: nanmean([nanmean([row[metric] for row in classes]) for classes in cases.values()]) for metric in METRICS
    }


def nanmean(values: list[float]) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    kept = [value for value in values if not math.isnan(value)]
    return float(np.mean(kept)) if kept else math.nan


# Predictions that lie in files, measured against labels that do, in mm by the labels' own spacing.


@dataclass(frozen=True)
class Evaluation:
    """What came out.

    Attributes:
        classes: the foreground classes' names, in the order of their values.
        rows: one a case and class: `case`, `class`, and the measures.
        note: on predictions that lie a little off their labels; None without any.
    """

    classes: list[str]
    rows: list[dict[str, Any]]
    note: str | None = None

    def cases(self, name: str) -> int:
        """In how many cases a class is, by label or prediction."""
        return sum(row["class"] == name and not math.isnan(row["dice"]) for row in self.rows)

    def class_means(self) -> dict[str, dict[str, float]]:
        """Each class's means over cases; of a measure that no case has, NaN."""
        return {
            name: {metric: nanmean([row[metric] for row in self.rows if row["class"] == name]) for metric in METRICS}
            for name in self.classes
        }

    def foreground_means(self) -> dict[str, float]:
        """The means over cases of the means over a case's classes, as training gives them."""
        return mean_metrics(self.rows)

    def csv(self) -> str:
        """The rows as CSV; empty where a measure has no meaning."""
        return str(pd.DataFrame(self.rows, columns=["case", "class", *METRICS]).to_csv(index=False))


def evaluate(
    predictions: Path,
    references: References,
    matched: Matched,
    *,
    nsd_tolerance_mm: float = NSD_TOLERANCE_MM,
    progress: Callable[[], object] | None = None,
) -> Evaluation:
    """Measure every pair, several at a time.

    Args:
        predictions: folder of NIfTI label maps.
        references: the labels.
        matched: the pairs, as `match` finds them.
        nsd_tolerance_mm: up to where a surface's distance is no error to the NSD.
        progress: is called after each pair.

    Raises:
        UserError: a file that cannot be read, lies on another grid than its label, or holds other values than the
            classes'; all such files are told, a line each.
    """
    if not math.isfinite(nsd_tolerance_mm) or nsd_tolerance_mm < 0:
        raise UserError(f"--tolerance: got {nsd_tolerance_mm}; expected a finite number of mm, 0 or more")
    names = list(references.classes.values())
    offences: list[Offence] = []
    rows: list[dict[str, Any]] = []
    shifts: dict[str, float] = {}
    spoiled = Event()
    measure = partial(_measure, predictions, references, nsd_tolerance_mm, spoiled)
    with LoggingOutputSuppressor(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for (label, file), (bad, measures, shift) in zip(matched.pairs, pool.map(measure, matched.pairs), strict=True):
            offences.extend(bad)
            shifts[str(predictions / file)] = shift
            rows.extend(
                {"case": label.case, "class": name, **measured}
                for name, measured in zip(names, measures, strict=False)  # there are none where a file is bad
            )
            if progress is not None:
                progress()
    if offences:
        raise UserError("\n".join(f"{shown(file)}: {reason}" for file, reason in offences))
    return Evaluation(names, rows, shift_note(shifts, "prediction", "label"))


def _measure(
    predictions: Path, references: References, tolerance: float, spoiled: Event, pair: tuple[Reference, str]
) -> tuple[list[Offence], list[dict[str, float]], float]:
    """What is wrong with a pair; else its measures, class by class, and how far the prediction lies off, mm."""
    label, file = pair
    offences, shift = [], 0.0
    volumes, channels = [], []
    values = [0, *references.classes]
    reads = ((references.root / label.file, lambda: references.read(label)),
             (predictions / file, lambda: read_labels(predictions / file, references.dimensions)))  # fmt: skip
    for path, read in reads:
        try:
            volume = read()
            channels.append(torch.from_numpy(label_channels(volume.data, values)))
            volumes.append(volume)
        except BadFileError as error:
            offences.append(Offence(str(path), str(error)))
    if len(volumes) == 2:
        problem = grid_problem(volumes[1], volumes[0], "label")
        if problem is not None:
            offences.append(Offence(str(predictions / file), problem))
        else:
            shift = grid_shift(volumes[1], volumes[0])
    if offences:
        spoiled.set()
    # Once a file is bad, the others are but looked through for more such: there will be no result.
    if spoiled.is_set():
        return offences, [], 0.0
    spacing = volumes[0].spacing
    return [], case_metrics(channels[1], channels[0], len(values), spacing, nsd_tolerance_mm=tolerance), shift
