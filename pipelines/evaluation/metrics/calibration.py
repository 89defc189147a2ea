"""Metrics of calibration: how well the probabilities of a class agree with the reference, around the reference's mask.

`calibration.py` next to this folder has the bins. They need probabilities, and are undefined without them.
"""

from math import nan

from pipelines.evaluation.metrics.base import ClassMasks, register


@register(
    "ece", "ECE", higher_is_better=False, empty_reference="left out", default=False, by_probabilities=True,
    in_table=False,
)  # fmt: skip
def ece(masks: ClassMasks) -> float:
    """The expected calibration error in 15 bins of equal width; NaN without probabilities or reference."""
    return nan if masks.calibration is None else masks.calibration.ece


@register(
    "brier", "Brier score", higher_is_better=False, empty_reference="left out", default=False, by_probabilities=True,
    in_table=False,
)  # fmt: skip
def brier(masks: ClassMasks) -> float:
    """The mean squared difference of probability and reference (0 or 1); NaN without probabilities or reference."""
    return nan if masks.calibration is None else masks.calibration.brier
