"""Metrics of volume: signed and absolute difference, and ratio, relative to the reference's volume.

They do not show where the prediction is: a prediction without any overlap can have the right volume.
"""

from math import inf, nan

from pipelines.evaluation.metrics.base import ClassMasks, register


@register(
    "volume_difference", "volume difference", higher_is_better=False, lower=-1.0, upper=inf, target=0.0,
    empty_reference="left out", default=False,
)  # fmt: skip
def volume_difference(masks: ClassMasks) -> float:
    """(V(P) - V(R)) / V(R), above 0 if the prediction is too large; NaN if the reference is empty."""
    return (masks.predicted - masks.present) / masks.present if masks.present else nan


@register(
    "absolute_volume_difference", "absolute volume difference", higher_is_better=False, upper=inf,
    empty_reference="left out", default=False,
)  # fmt: skip
def absolute_volume_difference(masks: ClassMasks) -> float:
    """|V(P) - V(R)| / V(R); NaN if the reference is empty."""
    return abs(volume_difference(masks))


@register(
    "volume_ratio", "volume ratio", higher_is_better=False, upper=inf, target=1.0, empty_reference="left out",
    default=False, in_table=False,
)  # fmt: skip
def volume_ratio(masks: ClassMasks) -> float:
    """V(P) / V(R); NaN if the reference is empty."""
    return masks.predicted / masks.present if masks.present else nan
