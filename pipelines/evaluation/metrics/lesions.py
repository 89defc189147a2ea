"""Lesion-wise metrics: a lesion is a connected component of a mask, and lesions are matched one to one.

`lesions.py` next to this folder has the matching. TP, FP and FN count matched, false and missed lesions. None of these
metrics is computed by default: a manifest or an option names them.
"""

from math import inf, nan

from pipelines.evaluation.metrics.base import ClassMasks, register


@register("lesion_sensitivity", "lesion sensitivity", empty_reference="left out", default=False)
def lesion_sensitivity(masks: ClassMasks) -> float:
    """Found share of the reference's lesions, TP / (TP + FN); NaN if it has none."""
    found = masks.lesions
    return _ratio(found.tp, found.tp + found.fn)


@register("lesion_precision", "lesion precision", default=False)
def lesion_precision(masks: ClassMasks) -> float:
    """True share of the predicted lesions, TP / (TP + FP); 0 if none is predicted and the reference has some."""
    found = masks.lesions
    return _ratio(found.tp, found.tp + found.fp) if found.tp + found.fp else _nothing(found.fn)


@register("lesion_f1", "lesion F1", default=False)
def lesion_f1(masks: ClassMasks) -> float:
    """Recognition quality (RQ), TP / (TP + FP / 2 + FN / 2); NaN without any lesion."""
    found = masks.lesions
    return _ratio(2 * found.tp, 2 * found.tp + found.fp + found.fn)


@register("lesion_sq", "segmentation quality", default=False, in_table=False)
def lesion_sq(masks: ClassMasks) -> float:
    """Mean IoU of the matched lesions; 0 if no lesion matches, and NaN without any lesion."""
    found = masks.lesions
    return _ratio(found.iou.sum(), found.tp) if found.tp else _nothing(found.fp + found.fn)


@register("lesion_pq", "panoptic quality", default=False)
def lesion_pq(masks: ClassMasks) -> float:
    """Sum of the IoU of the matched lesions / (TP + FP / 2 + FN / 2), which is SQ times RQ; NaN without any lesion."""
    found = masks.lesions
    return _ratio(found.iou.sum(), found.tp + (found.fp + found.fn) / 2)


@register("lesion_dice", "lesion-wise Dice", default=False)
def lesion_dice(masks: ClassMasks) -> float:
    """Mean Dice over all lesions, where a missed or a false lesion counts as 0; NaN without any lesion."""
    found = masks.lesions
    return _ratio(found.dice.sum(), found.tp + found.fp + found.fn)


@register("lesion_hd95_mm", "lesion-wise HD95", unit="mm", higher_is_better=False, upper=inf, decimals=2, default=False)
def lesion_hd95_mm(masks: ClassMasks) -> float:
    """Mean HD95 over all lesions, mm, where a missed or a false lesion counts as the volume's diagonal."""
    found = masks.lesions
    unmatched = found.fp + found.fn
    return _ratio(found.hd95_mm.sum() + unmatched * masks.diagonal, found.tp + unmatched)


@register(
    "lesion_false_positives",
    "false lesions",
    higher_is_better=False,
    upper=inf,
    decimals=2,
    empty_reference="value",
    default=False,
)
def lesion_false_positives(masks: ClassMasks) -> float:
    """Number of predicted lesions without a match in the reference."""
    return float(masks.lesions.fp)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else nan


def _nothing(lesions: int) -> float:
    """The value of a share of nothing: 0 if there are lesions that it should have had, else undefined."""
    return 0.0 if lesions else nan
