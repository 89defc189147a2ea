"""Predictions that lie in files, measured against labels that do, in mm by the labels' own spacing."""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pandas as pd
import torch
from nibabel.imageglobals import LoggingOutputSuppressor

from pipelines.dataset.case_reader import Offence
from pipelines.dataset.geometry import grid_problem, grid_shift, shift_note
from pipelines.dataset.label_file import read_labels
from pipelines.dataset.nifti import BadFileError
from pipelines.errors import UserError
from pipelines.evaluation.label_values import label_channels
from pipelines.evaluation.metrics import NSD_TOLERANCE_MM, case_metrics, mean_metrics, nanmean
from pipelines.evaluation.reference_labels import Matched, Reference, References, shown
from pipelines.evaluation.registry import METRICS


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
