"""The signed difference of the volumes in ml, which the report's Bland-Altman plot shows next to the relative one."""

from math import inf, nan, prod

from pipelines.evaluation.metrics.base import ClassMasks, register


@register(
    "volume_bias_ml", "volume bias", unit="ml", higher_is_better=False, lower=-inf, upper=inf, decimals=2, target=0.0,
    empty_reference="value", default=False, in_table=False,
)  # fmt: skip
def volume_bias_ml(masks: ClassMasks) -> float:
    """V(P) - V(R), ml, above 0 if the prediction is too large; NaN in 2D, where voxels have no volume."""
    if len(masks.spacing) < 3:
        return nan
    return (masks.predicted - masks.present) * prod(masks.spacing) / 1000
