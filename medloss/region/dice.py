"""Soft Dice loss."""

from typing import Unpack

from torch import Tensor

from medloss.base import CommonArguments
from medloss.errors import InputError
from medloss.loss_entry import register
from medloss.overlap import OverlapStatistics
from medloss.region.base import RegionLoss


def dice_coefficient(sums: OverlapStatistics, smooth_nr: float, smooth_dr: float) -> Tensor:
    """The soft Dice coefficient `(2 TP + s) / (sum y + sum p + s)`, in the shape of the sums."""
    return (2 * sums.tp + smooth_nr) / (sums.target + sums.prediction + smooth_dr)


@register(
    "dice",
    family="region",
    paper="Milletari et al. 2016, arXiv 1606.04797",
    summary="soft overlap",
)
class DiceLoss(RegionLoss):
    r"""One minus the soft Dice coefficient of each item and class.

    $$1 - D, \quad D = \frac{2 \sum y p + s}{\sum y + \sum p + s}$$

    y: target; p: probability; s: smoothing, in voxels, s_n in the numerator and s_d in the denominator. An
    empty class that is predicted empty then has the value 0.

    Replaces MONAI's `DiceLoss`, whose s is 1e-5.

    Args:
        smooth_nr: s_n. Default 1 (the survey's).
        smooth_dr: s_d. Default 1.
        squared_pred: squares in the denominator, as the V-Net's paper has it: `sum y^2 + sum p^2`.
        jaccard: the soft Jaccard index (intersection over union) instead of D, as MONAI's:
            `(2 I + s) / (2 U + s)`.
        soft_label: for soft targets: TP is the sum of (p + y - |p - y|) / 2 (Wang 2023, as MONAI), so that p = y gives
            0, with `squared_pred` it is so anyway; with targets of 0 and 1 nothing changes. Default False.
        **common: the arguments of `SegmentationLoss`. Soft targets are allowed.

    Raises:
        InputError: a negative smoothing term.

    References:
        Milletari, Navab and Ahmadi (2016), V-Net: Fully Convolutional Neural Networks for Volumetric Medical
        Image Segmentation, arXiv 1606.04797. Sudre et al. (2017), arXiv 1707.03237. Wang et al. (2023), arXiv
        2303.16296, for `soft_label`.

    Example:
        >>> import torch, medloss
        >>> loss = medloss.DiceLoss(sigmoid=True, smooth_nr=0.0, smooth_dr=0.0)
        >>> label = torch.ones(1, 1, 4, 4, 4)
        >>> round(loss(torch.zeros(1, 1, 4, 4, 4), label).item(), 4)  # 1 - 2 * 0.5 / 1.5
        0.3333
    """

    def __init__(
        self,
        *,
        smooth_nr: float = 1.0,
        smooth_dr: float = 1.0,
        squared_pred: bool = False,
        jaccard: bool = False,
        soft_label: bool = False,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(**common)
        self.smooth_nr, self.smooth_dr = checked_smoothing(smooth_nr, smooth_dr)
        self.squared_pred = squared_pred
        self.jaccard = jaccard
        self.soft_label = soft_label

    def from_statistics(self, sums: OverlapStatistics) -> Tensor:
        """1 - D."""
        return 1 - self.coefficient(sums)

    def coefficient(self, sums: OverlapStatistics) -> Tensor:
        """D, with the options of this instance."""
        if not (self.squared_pred or self.jaccard):
            return dice_coefficient(sums, self.smooth_nr, self.smooth_dr)
        total = sums.target + sums.prediction
        if self.squared_pred:
            total = sums.squared_target + sums.squared_prediction
        if self.jaccard:
            total = 2 * (total - sums.tp)
        return (2 * sums.tp + self.smooth_nr) / (total + self.smooth_dr)


def checked_smoothing(smooth_nr: float, smooth_dr: float) -> tuple[float, float]:
    """The smoothing terms as numbers >= 0.

    Raises:
        InputError: one is negative or NaN.
    """
    for name, value in (("smooth_nr", smooth_nr), ("smooth_dr", smooth_dr)):
        if not value >= 0:
            raise InputError(f"{name}: got {value}; expected a number >= 0")
    return float(smooth_nr), float(smooth_dr)
