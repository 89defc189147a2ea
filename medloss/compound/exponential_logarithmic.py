"""Exponential logarithmic loss."""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from medloss.base import CommonArguments
from medloss.compound.reduction import reduce_compound
from medloss.distributed import sum_over_ranks
from medloss.errors import InputError
from medloss.loss_entry import register
from medloss.region.dice import checked_smoothing, dice_coefficient
from medloss.sums_loss import SumsLoss
from medloss.voxel_sums import Requested, VoxelSums


@register(
    "exponential_logarithmic",
    family="compound",
    paper="Wong et al. 2018, arXiv 1809.00076",
    summary="powers of the logarithms of Dice and of the voxels' probabilities",
)
class ExponentialLogarithmicLoss(SumsLoss):
    r"""Powers of the logarithms of the Dice coefficient and of the voxels' probabilities.

    $$w_d\, \mathrm{mean}_c[(-\ln D_c)^g] + w_x\, \mathrm{mean}_x[w_l (-\ln p_l)^g], \quad
    w_l = \Big(\sum_k f_k / f_l\Big)^{1/2}$$

    D: the soft Dice coefficient, per item and class; p_l: the probability given to a voxel's label l; f: label
    frequencies; g: `gamma`. Independent channels: a channel's labels are yes (f = mean y) and no (1 - f).
    A label that does not occur has weight 0. Both -ln terms are kept at or above 1e-7, with no gradient below: a
    perfect prediction has a value of some 1e-7^g, 0.01 by default.

    Args:
        dice_weight: w_d. Default 0.8 (the paper's).
        cross_entropy_weight: w_x. Default 0.2 (the paper's).
        gamma: g > 0. Default 0.3 (the paper's best): below 1 it pulls hardest at both ends.
        frequencies: one number per class (C of them), of the training set, as in the paper. None (ours): of the
            current batch (with `batch=True` in training: of all ranks' batches), over all classes also when class 0
            is dropped.
        smooth_nr: smoothing in the numerator, in voxels. Default 1.
        smooth_dr: smoothing in the denominator. Default 1.
        **common: the arguments of `SegmentationLoss`. Soft targets are allowed; `batch` concerns the Dice part.

    Raises:
        InputError: `gamma` not positive, a negative number elsewhere, a wrong number of frequencies.

    References:
        Wong, Moradi, Tang and Syeda-Mahmood (2018), 3D Segmentation with Exponential Logarithmic Loss for Highly
        Unbalanced Object Sizes, arXiv 1809.00076.

    Example:
        >>> import torch, medloss
        >>> loss = medloss.ExponentialLogarithmicLoss(softmax=True, gamma=1.0, smooth_nr=0.0, smooth_dr=0.0)
        >>> label = torch.zeros(1, 1, 4, 4, dtype=torch.long)
        >>> label[..., :2] = 1  # D = 0.5 and w = sqrt(2): 0.8 ln 2 + 0.2 sqrt(2) ln 2
        >>> round(loss(torch.zeros(1, 2, 4, 4), label).item(), 4)
        0.7506
    """

    def __init__(
        self,
        *,
        dice_weight: float = 0.8,
        cross_entropy_weight: float = 0.2,
        gamma: float = 0.3,
        frequencies: Sequence[float] | None = None,
        smooth_nr: float = 1.0,
        smooth_dr: float = 1.0,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(**common)
        for name, value in (("dice_weight", dice_weight), ("cross_entropy_weight", cross_entropy_weight)):
            if not value >= 0:
                raise InputError(f"{name}: got {value}; expected a number >= 0")
        if not gamma > 0:
            raise InputError(f"gamma: got {gamma}; expected a positive number")
        if frequencies is not None and not all(f >= 0 for f in frequencies):
            raise InputError(f"frequencies: got {list(frequencies)}; expected numbers >= 0, one per class")
        self.dice_weight = float(dice_weight)
        self.cross_entropy_weight = float(cross_entropy_weight)
        self.gamma = float(gamma)
        self.frequencies = None if frequencies is None else tuple(float(f) for f in frequencies)
        self.smooth_nr, self.smooth_dr = checked_smoothing(smooth_nr, smooth_dr)

    def requested(self) -> Requested:
        """Overlap, and powers of the voxels' logarithms."""
        return Requested(overlap=True, entropy="power", gamma=self.gamma)

    def from_sums(self, sums: VoxelSums) -> Tensor:
        """The weighted sum of the two parts, per item and class."""
        overlap = self.overlap(sums)
        dice = dice_coefficient(overlap, self.smooth_nr, self.smooth_dr)
        power = (-dice.log()).clamp(min=1e-7) ** self.gamma
        entropy = sums.cross_entropy(*self._rarities(sums))
        return reduce_compound(sums.inputs, self, overlap, self.cross_entropy_weight, entropy, self.dice_weight, power)

    def _rarities(self, sums: VoxelSums) -> tuple[Tensor, Tensor]:
        """Weights of the labels yes and no, `[C']`."""
        frequencies = self._frequencies(sums)
        left = frequencies if sums.inputs.include_background else frequencies[1:]
        one = torch.ones_like(left)
        total = frequencies.sum() if sums.inputs.categorical else one
        return _rarity(left, total), _rarity(1 - left, one)

    def _frequencies(self, sums: VoxelSums) -> Tensor:
        """Label frequencies `[C]`."""
        channels = sums.all_targets.shape[1]
        if self.frequencies is None:
            targets, voxels = sums.all_targets.sum(0), sums.inputs.class_counts().sum(0)
            if self.batch:
                targets, voxels = sum_over_ranks(sums.inputs.logits, targets, voxels)
            return targets / voxels.clamp(min=1)
        if len(self.frequencies) != channels:
            raise InputError(f"frequencies: got {len(self.frequencies)} numbers; expected {channels}, one per class")
        return sums.all_targets.new_tensor(self.frequencies)


def _rarity(frequencies: Tensor, total: Tensor) -> Tensor:
    """(sum f / f)^(1/2), and 0 for a label that does not occur."""
    present = frequencies > 0
    return torch.where(present, (total / torch.where(present, frequencies, 1.0)).sqrt(), 0.0)
