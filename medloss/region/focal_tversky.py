"""Focal Tversky loss: a power of the Tversky loss."""

from typing import Unpack

from torch import Tensor

from medloss.base import CommonArguments
from medloss.errors import InputError
from medloss.loss_entry import register
from medloss.overlap import OverlapStatistics
from medloss.region.tversky import TverskyLoss


@register(
    "focal_tversky",
    family="region",
    paper="Abraham and Khan 2018, arXiv 1810.07842",
    summary="a power of the Tversky loss: steepest where the overlap is nearly perfect",
)
class FocalTverskyLoss(TverskyLoss):
    r"""A power of one minus the soft Tversky index of each item and class.

    $$(1 - TI)^{1/g}$$

    TI: the Tversky index of `TverskyLoss`; g: `gamma`. The gradient is infinite at TI = 1, so 1 - TI is kept at or
    above 1e-7, with no gradient below: a perfect prediction has the value 1e-7^(1/g), 6e-6 by default.

    Args:
        gamma: g > 0. Default 4/3 (the paper's). Above 1 the gradient grows with the overlap, so that nearly right
            classes keep learning; below 1 bad ones weigh more.
        inverse_gamma: the exponent 1/g of the paper; False gives g, which the survey prints.
        alpha: the weight of a false positive. Default 0.3.
        beta: the weight of a false negative. Default 0.7.
        smooth_nr: s in the numerator, in voxels. Default 1.
        smooth_dr: s in the denominator. Default 1.
        soft_label: as in `TverskyLoss`.
        **common: the arguments of `SegmentationLoss`. Soft targets are allowed.

    Raises:
        InputError: `gamma` not positive, or another argument negative.

    References:
        Abraham and Khan (2018), A Novel Focal Tversky Loss Function with Improved Attention U-Net for Lesion
        Segmentation, arXiv 1810.07842.

    Example:
        >>> import torch, medloss
        >>> loss = medloss.FocalTverskyLoss(sigmoid=True, smooth_nr=0.0, smooth_dr=0.0)
        >>> label = torch.ones(1, 1, 4, 4, 4)
        >>> round(loss(torch.zeros(1, 1, 4, 4, 4), label).item(), 4)  # 0.4118^(3/4)
        0.514
    """

    def __init__(
        self,
        *,
        gamma: float = 4 / 3,
        inverse_gamma: bool = True,
        alpha: float = 0.3,
        beta: float = 0.7,
        smooth_nr: float = 1.0,
        smooth_dr: float = 1.0,
        soft_label: bool = False,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(
            alpha=alpha, beta=beta, smooth_nr=smooth_nr, smooth_dr=smooth_dr, soft_label=soft_label, **common
        )
        if not gamma > 0:
            raise InputError(f"gamma: got {gamma}; expected a positive number")
        self.gamma = float(gamma)
        self.inverse_gamma = inverse_gamma

    def from_statistics(self, sums: OverlapStatistics) -> Tensor:
        """(1 - TI)^(1/g)."""
        exponent = 1 / self.gamma if self.inverse_gamma else self.gamma
        return (1 - self.index(sums)).clamp(min=1e-7) ** exponent
