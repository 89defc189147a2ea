"""Metrics of overlap: Dice, IoU, sensitivity, specificity."""

from math import nan

from pipelines.evaluation.metrics.base import ClassMasks, register


@register("dice", "Dice", zero_without_overlap=True)
def dice(masks: ClassMasks) -> float:
    """2 TP / (2 TP + FP + FN); NaN if both masks are empty."""
    return _ratio(2 * masks.tp, 2 * masks.tp + masks.fp + masks.fn)


@register("iou", "IoU", zero_without_overlap=True, in_table=False)
def iou(masks: ClassMasks) -> float:
    """Jaccard index, TP / (TP + FP + FN); NaN if both masks are empty."""
    return _ratio(masks.tp, masks.tp + masks.fp + masks.fn)


@register("sensitivity", "sensitivity", zero_without_overlap=True, empty_reference="left out")
def sensitivity(masks: ClassMasks) -> float:
    """TP / (TP + FN); NaN if the reference is empty."""
    return _ratio(masks.tp, masks.present)


@register("specificity", "specificity", empty_reference="value")
def specificity(masks: ClassMasks) -> float:
    """TN / (TN + FP); NaN if the reference fills the volume."""
    return _ratio(masks.tn, masks.voxels - masks.present)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else nan
