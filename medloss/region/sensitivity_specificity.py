"""Sensitivity-specificity loss."""

from typing import Unpack

from torch import Tensor

from medloss.base import CommonArguments
from medloss.errors import InputError
from medloss.loss_entry import register
from medloss.overlap import OverlapStatistics
from medloss.region.base import RegionLoss
from medloss.region.dice import checked_smoothing


@register(
    "sensitivity_specificity",
    family="region",
    paper="Brosch et al. 2015, doi 10.1007/978-3-319-24574-4_1",
    summary="squared errors on each side, divided by its size",
)
class SensitivitySpecificityLoss(RegionLoss):
    r"""Squared error on the foreground and on the background, each side divided by its size.

    $$r \frac{\sum (y - p)^2 y}{\sum y + s} + (1 - r) \frac{\sum (y - p)^2 (1 - y)}{\sum (1 - y) + s}$$

    y: target; p: probability; r: `r`; s: smoothing in voxels.

    With `squared=False`: 1 - [r sens + (1 - r) spec], where sens = (TP + s) / (sum y + s) and spec likewise:
    the survey's score, turned into a loss.

    Args:
        r: the weight of the sensitivity's part, in [0, 1]. Default 0.05 (the paper's).
        squared: squared errors (the paper's form) or the survey's quotients.
        smooth_nr: s in the numerators of the survey's form. Default 1e-5.
        smooth_dr: s in the denominators. Default 1e-5.
        **common: the arguments of `SegmentationLoss`. Soft targets are allowed.

    Raises:
        InputError: `r` outside [0, 1], a negative smoothing term.

    References:
        Brosch, Yoo, Tang, Li, Traboulsee and Tam (2015), Deep Convolutional Encoder Networks for Multiple
        Sclerosis Lesion Segmentation, doi 10.1007/978-3-319-24574-4_1.

    Example:
        >>> import torch, medloss
        >>> label = torch.zeros(1, 1, 4, 4)
        >>> label[..., :2] = 1
        >>> loss = medloss.SensitivitySpecificityLoss(sigmoid=True)
        >>> round(loss(torch.zeros(1, 1, 4, 4), label).item(), 4)  # every error is 0.5
        0.25
    """

    reads_squared_errors = True

    def __init__(
        self,
        *,
        r: float = 0.05,
        squared: bool = True,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(**common)
        if not 0 <= r <= 1:
            raise InputError(f"r: got {r}; expected a number in [0, 1]")
        self.r = float(r)
        self.squared = squared
        self.smooth_nr, self.smooth_dr = checked_smoothing(smooth_nr, smooth_dr)

    def from_statistics(self, sums: OverlapStatistics) -> Tensor:
        """r times the foreground's part, and 1 - r times the background's."""
        background = sums.voxels - sums.target
        if self.squared:
            inside = sums.squared_error_inside / (sums.target + self.smooth_dr)
            outside = sums.squared_error_outside / (background + self.smooth_dr)
            return self.r * inside + (1 - self.r) * outside
        sensitivity = (sums.tp + self.smooth_nr) / (sums.target + self.smooth_dr)
        specificity = (background - sums.fp + self.smooth_nr) / (background + self.smooth_dr)
        return 1 - self.r * sensitivity - (1 - self.r) * specificity
