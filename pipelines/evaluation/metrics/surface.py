"""Metrics of the distances between two surfaces, in mm: HD95, ASSD, NSD.

The surface of a mask consists of its voxels that share a face with a voxel outside the mask or with the border of the
volume; distances are between voxel centres. The definitions are MONAI's; `surface_distances.py` has the formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan
from typing import TYPE_CHECKING

from pipelines.evaluation.metrics.base import ClassMasks, register

if TYPE_CHECKING:
    from pipelines.evaluation.surface_distances import SurfaceDistances


@register("hd95_mm", "HD95", unit="mm", higher_is_better=False, upper=inf, decimals=2)
def hd95_mm(masks: ClassMasks) -> float:
    """The larger of the two directed 95th percentiles of the surface distances, mm."""
    return _of_surfaces(masks, lambda distances: distances.hausdorff(95), masks.diagonal)


@register("assd_mm", "ASSD", unit="mm", higher_is_better=False, upper=inf, decimals=2, in_table=False)
def assd_mm(masks: ClassMasks) -> float:
    """The mean of all surface distances in both directions, mm."""
    return _of_surfaces(masks, lambda distances: distances.average(), masks.diagonal)


@register("nsd", "NSD", by_tolerance=True)
def nsd(masks: ClassMasks) -> float:
    """The share of the voxels of both surfaces that are within the tolerance of the other surface."""
    return _of_surfaces(masks, lambda distances: distances.within(masks.tolerance), 0.0)


def _of_surfaces(masks: ClassMasks, value: Callable[[SurfaceDistances], float], worst: float) -> float:
    """The value; the worst value if one mask is empty, and NaN if both are."""
    if masks.predicted and masks.present:
        return value(masks.surfaces)
    return worst if masks.predicted or masks.present else nan
