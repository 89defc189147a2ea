"""Tversky loss: Dice with separate weights for false positives and false negatives."""

from typing import Unpack

from torch import Tensor

from medloss.base import CommonArguments
from medloss.errors import InputError
from medloss.loss_entry import register
from medloss.overlap import OverlapStatistics
from medloss.region.base import RegionLoss
from medloss.region.dice import checked_smoothing


@register(
    "tversky",
    family="region",
    paper="Salehi et al. 2017, arXiv 1706.05721",
    summary="soft overlap, a missed voxel costs more than a false one",
)
class TverskyLoss(RegionLoss):
    r"""One minus the soft Tversky index of each item and class.

    $$1 - TI, \quad TI = \frac{TP + s}{TP + a\, FP + b\, FN + s}$$

    TP = sum y p, FP = sum (1 - y) p, FN = sum y (1 - p); y: target; p: probability; a: `alpha`; b: `beta`;
    s: smoothing in voxels.

    Replaces MONAI's `TverskyLoss`, whose a and b are 0.5 (that is Dice with 2 s) and s 1e-5. Other
    code swaps the two names.

    Args:
        alpha: the weight of a false positive. Default 0.3 (the paper's best).
        beta: the weight of a false negative. Default 0.7; higher finds more of a small structure.
        smooth_nr: s in the numerator. Default 1.
        smooth_dr: s in the denominator. Default 1.
        soft_label: for soft targets: TP is the sum of (p + y - |p - y|) / 2, FP = sum p - TP and FN = sum y - TP (Wang
            2023, as MONAI), so that p = y gives 0; with targets of 0 and 1 nothing changes. Default False.
        **common: the arguments of `SegmentationLoss`. Soft targets are allowed.

    Raises:
        InputError: a negative argument.

    References:
        Salehi, Erdogmus and Gholipour (2017), Tversky loss function for image segmentation using 3D fully
        convolutional deep networks, arXiv 1706.05721. Wang et al. (2023), arXiv 2303.16296, for `soft_label`.

    Example:
        >>> import torch, medloss
        >>> loss = medloss.TverskyLoss(sigmoid=True, smooth_nr=0.0, smooth_dr=0.0)
        >>> label = torch.ones(1, 1, 4, 4, 4)
        >>> round(loss(torch.zeros(1, 1, 4, 4, 4), label).item(), 4)  # 1 - 0.5 / (0.5 + 0.7 * 0.5)
        0.4118
    """

    def __init__(
        self,
        *,
        alpha: float = 0.3,
        beta: float = 0.7,
        smooth_nr: float = 1.0,
        smooth_dr: float = 1.0,
        soft_label: bool = False,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(**common)
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not value >= 0:
                raise InputError(f"{name}: got {value}; expected a number >= 0")
        self.alpha = float(alpha)
        self.beta = float(beta)
        self.smooth_nr, self.smooth_dr = checked_smoothing(smooth_nr, smooth_dr)
        self.soft_label = soft_label

    def from_statistics(self, sums: OverlapStatistics) -> Tensor:
        """1 - TI."""
        return 1 - self.index(sums)

    def index(self, sums: OverlapStatistics) -> Tensor:
        """The soft Tversky index TI."""
        penalised = self.alpha * sums.fp + self.beta * sums.fn
        return (sums.tp + self.smooth_nr) / (sums.tp + penalised + self.smooth_dr)
