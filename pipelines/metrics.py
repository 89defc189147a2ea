"""What a segmentation is worth, case by case and class by class: Dice, sensitivity, specificity, HD95 in mm."""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance
from torch import Tensor

#: The measures of a case and class, in the order of tables.
METRICS = ("dice", "sensitivity", "specificity", "hd95_mm")


@dataclass(frozen=True)
class ClassMetrics:
    """One case, one class.

    NaN where a measure has no meaning: all but specificity when reference and prediction are both empty, specificity
    when the reference fills the volume. One of the two empty: Dice 0, HD95 the volume's diagonal, the worst there is.

    Attributes:
        dice: 2 TP / (2 TP + FP + FN).
        sensitivity: TP / (TP + FN); NaN when the reference is empty.
        specificity: TN / (TN + FP).
        hd95_mm: the larger of the two directed 95th percentiles of surface distances, mm.
    """

    dice: float
    sensitivity: float
    specificity: float
    hd95_mm: float


def case_metrics(
    prediction: Tensor, reference: Tensor, num_classes: int, spacing: tuple[float, ...]
) -> list[ClassMetrics]:
    """The measures of each foreground class of one case.

    Args:
        prediction: labels 0..C-1, `[*spatial]`.
        reference: labels 0..C-1, `[*spatial]`.
        num_classes: C.
        spacing: mm, in the order of the array's axes.
    """
    return [_class_metrics(prediction == c, reference == c, spacing) for c in range(1, num_classes)]


def _class_metrics(prediction: Tensor, reference: Tensor, spacing: tuple[float, ...]) -> ClassMetrics:
    tp = int((prediction & reference).sum())
    predicted, present, voxels = int(prediction.sum()), int(reference.sum()), reference.numel()
    fp, fn = predicted - tp, present - tp
    tn = voxels - tp - fp - fn
    return ClassMetrics(
        dice=2 * tp / (2 * tp + fp + fn) if predicted + present else math.nan,
        sensitivity=tp / present if present else math.nan,
        specificity=tn / (voxels - present) if voxels > present else math.nan,
        hd95_mm=_hd95(prediction, reference, spacing) if predicted + present else math.nan,
    )


def _hd95(prediction: Tensor, reference: Tensor, spacing: tuple[float, ...]) -> float:
    if not prediction.any() or not reference.any():
        return math.hypot(*(n * s for n, s in zip(reference.shape, spacing, strict=True)))
    maps = [mask[None, None].float() for mask in (prediction, reference)]
    with warnings.catch_warnings():
        # MONAI 1.6 warns of an argument that it passes to itself.
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
        distance = compute_hausdorff_distance(*maps, include_background=True, percentile=95, spacing=list(spacing))
    return float(distance)


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


def argmax_labels(logits: Tensor) -> Tensor:
    """Labels 0..C-1 `[B, *spatial]` of logits `[B, C, *spatial]`."""
    return torch.argmax(logits, 1)
