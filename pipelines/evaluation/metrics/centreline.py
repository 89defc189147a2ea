"""The centreline Dice, for tubes such as vessels and airways."""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING

from pipelines.evaluation.metrics.base import ClassMasks, register

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@register("cldice", "clDice", default=False, requires="skimage/scikit-image")
def cldice(masks: ClassMasks) -> float:
    """The clDice of Shit et al. 2021, arXiv 2003.07311; 0 if one of the masks is empty, and NaN if both are.

    With the skeletons S of both masks: the harmonic mean of the share of S(P) within R and that of S(R) within P.
    """
    if not (masks.predicted and masks.present):
        return 0.0 if masks.predicted or masks.present else nan
    precision = _share(masks.prediction, masks.reference)
    sensitivity = _share(masks.reference, masks.prediction)
    both = precision + sensitivity
    return 2 * precision * sensitivity / both if both else 0.0


def _share(tubes: NDArray[np.bool_], others: NDArray[np.bool_]) -> float:
    """The share of the voxels of a mask's skeleton that are within another mask."""
    from skimage.morphology import skeletonize

    skeleton = skeletonize(tubes) > 0
    if not skeleton.any():  # scikit-image thins small blocks, such as 2 x 2 x 2, to nothing
        skeleton = tubes
    return float((skeleton & others).sum() / skeleton.sum())
