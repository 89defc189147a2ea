"""Log-cosh Dice loss: a smoother Dice loss."""

import math

import torch.nn.functional as F
from torch import Tensor

from medloss.loss_entry import register
from medloss.overlap import OverlapStatistics
from medloss.region.dice import DiceLoss


@register(
    "log_cosh_dice",
    family="region",
    paper="Jadon 2020, arXiv 2006.14822",
    summary="a smoother Dice loss",
)
class LogCoshDiceLoss(DiceLoss):
    r"""The logarithm of the hyperbolic cosine of the soft Dice loss.

    $$\ln \cosh(1 - D)$$

    D: the soft Dice coefficient of `DiceLoss`, per item and class. Computed as x + softplus(-2x) - ln 2 with
    x = 1 - D; in float32, values below 1e-7 are rounding.

    Args:
        smooth_nr: smoothing in the numerator, in voxels. Default 1.
        smooth_dr: smoothing in the denominator. Default 1.
        squared_pred: squares in the denominator.
        jaccard: the Jaccard index instead of D.
        soft_label: as in `DiceLoss`.
        **common: the arguments of `SegmentationLoss`. Soft targets are allowed.

    Raises:
        InputError: a negative smoothing term.

    References:
        Jadon (2020), A survey of loss functions for semantic segmentation, arXiv 2006.14822.

    Example:
        >>> import torch, medloss
        >>> loss = medloss.LogCoshDiceLoss(sigmoid=True, smooth_nr=0.0, smooth_dr=0.0)
        >>> round(loss(torch.zeros(1, 1, 4, 4, 4), torch.ones(1, 1, 4, 4, 4)).item(), 4)  # ln cosh(1/3)
        0.0546
    """

    def from_statistics(self, sums: OverlapStatistics) -> Tensor:
        """Ln cosh(1 - D)."""
        x = super().from_statistics(sums)
        return x + F.softplus(-2 * x) - math.log(2)
