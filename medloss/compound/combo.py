"""Combo loss: weighted cross entropy and Dice."""

from typing import Unpack

from torch import Tensor

from medloss.base import CommonArguments
from medloss.compound.reduction import reduce_compound
from medloss.distribution.weighted_cross_entropy import foreground_weights
from medloss.errors import InputError
from medloss.loss_entry import register
from medloss.region.dice import checked_smoothing, dice_coefficient
from medloss.sums_loss import SumsLoss
from medloss.voxel_sums import Requested, VoxelSums


@register(
    "combo",
    family="compound",
    paper="Taghanaki et al. 2018, arXiv 1805.02798",
    summary="weighted cross entropy and Dice",
)
class ComboLoss(SumsLoss):
    r"""A weighted sum of weighted cross entropy and the soft Dice loss, per item and class.

    $$a\, \mathrm{mBCE} + (1 - a)(1 - D), \quad
    \mathrm{mBCE} = -\mathrm{mean}[b\, y \ln p + (1 - b)(1 - y) \ln(1 - p)]$$

    y: target; p: probability; D: the soft Dice coefficient; a: `alpha`; b: `beta`. Categorical: the class
    weights of the cross entropy are b (foreground) and 1 - b (background), unless `weight` is given. The paper's
    value is this one less the constant 1 - a, so that here the minimum is 0. The paper sums Dice over classes;
    here it is the mean. `include_background=False` drops class 0 from both parts.

    Args:
        alpha: a in [0, 1], the share of cross entropy. Default 0.5.
        beta: b in [0, 1]; above 0.5 a false negative costs more. Default 0.5.
        smooth_nr: smoothing in the numerator, in voxels. Default 1.
        smooth_dr: smoothing in the denominator. Default 1.
        **common: the arguments of `SegmentationLoss`. Soft targets are allowed; `batch` concerns the Dice part.

    Raises:
        InputError: `alpha` or `beta` outside [0, 1], a negative smoothing term.

    References:
        Taghanaki, Zheng, Zhou, Georgescu, Sharma, Xu, Comaniciu and Hamarneh (2018), Combo Loss: Handling Input
        and Output Imbalance in Multi-Organ Segmentation, arXiv 1805.02798.

    Example:
        >>> import torch, medloss
        >>> loss = medloss.ComboLoss(sigmoid=True, smooth_nr=0.0, smooth_dr=0.0)
        >>> label = torch.ones(1, 1, 4, 4, 4)
        >>> round(loss(torch.zeros(1, 1, 4, 4, 4), label).item(), 4)  # (0.5 ln 2 + 1/3) / 2
        0.34
    """

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        beta: float = 0.5,
        smooth_nr: float = 1.0,
        smooth_dr: float = 1.0,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(**common)
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not 0 <= value <= 1:
                raise InputError(f"{name}: got {value}; expected a number in [0, 1]")
        self.alpha = float(alpha)
        self.beta = float(beta)
        self.smooth_nr, self.smooth_dr = checked_smoothing(smooth_nr, smooth_dr)

    def requested(self) -> Requested:
        """Overlap and cross entropy."""
        return Requested(overlap=True, entropy="plain")

    def from_sums(self, sums: VoxelSums) -> Tensor:
        """The weighted sum of the two parts, per item and class."""
        overlap = self.overlap(sums)
        dice = 1 - dice_coefficient(overlap, self.smooth_nr, self.smooth_dr)
        entropy = sums.cross_entropy(*self._class_factors(sums))
        return reduce_compound(sums.inputs, self, overlap, self.alpha, entropy, 1 - self.alpha, dice)

    def _class_factors(self, sums: VoxelSums) -> tuple[Tensor | float, Tensor | float]:
        if not sums.inputs.categorical:
            return self.beta, 1 - self.beta
        if self.class_weight is not None:
            return 1.0, 1.0
        return foreground_weights(sums, 1 - self.beta, self.beta), 1.0
