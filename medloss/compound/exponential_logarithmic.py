"""Exponential logarithmic loss."""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from medloss.base import CommonArguments, SegmentationLoss
from medloss.compound.reduction import reduce_compound
from medloss.cross_entropy import negative_log, negative_log_complement
from medloss.entry import register
from medloss.errors import InputError
from medloss.inputs import LossInputs
from medloss.overlap import overlap_statistics
from medloss.region.dice import checked_smoothing, dice_coefficient


@register(
    "exponential_logarithmic",
    family="compound",
    paper="Wong et al. 2018, arXiv 1809.00076",
    summary="powers of the logarithms of Dice and of the voxels' probabilities",
)
class ExponentialLogarithmicLoss(SegmentationLoss):
    r"""Powers of the logarithms of the Dice coefficient and of the voxels' probabilities.

    $$w_d\, \mathrm{mean}_c[(-\ln D_c)^g] + w_x\, \mathrm{mean}_x[w_l (-\ln p_l)^g], \quad
    w_l = \Big(\sum_k f_k / f_l\Big)^{1/2}$$

    D: the soft Dice coefficient, an item and class; p_l: the probability given to a voxel's label l; f: label
    frequencies; g: `gamma`. Each channel its own yes/no: a channel's labels are yes (f = mean y) and no (1 - f).
    A label that does not occur has weight 0. Both -ln terms are kept at or above 1e-7, with no gradient below: a
    perfect prediction has a value of some 1e-7^g, 0.01 by default.

    Args:
        dice_weight: w_d. Default 0.8 (the paper's).
        cross_entropy_weight: w_x. Default 0.2 (the paper's).
        gamma: g > 0. Default 0.3 (the paper's best): below 1 it pulls hardest at both ends.
        frequencies: one number a class (C of them), of the training set, as in the paper. None (ours): of the
            batch at hand, over all classes also when class 0 is dropped.
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
            raise InputError(f"frequencies: got {list(frequencies)}; expected numbers >= 0, one a class")
        self.dice_weight = float(dice_weight)
        self.cross_entropy_weight = float(cross_entropy_weight)
        self.gamma = float(gamma)
        self.frequencies = None if frequencies is None else tuple(float(f) for f in frequencies)
        self.smooth_nr, self.smooth_dr = checked_smoothing(smooth_nr, smooth_dr)

    def compute(self, inputs: LossInputs) -> Tensor:
        """Share the two parts, an item and class."""
        dice = dice_coefficient(overlap_statistics(inputs, batch=self.batch), self.smooth_nr, self.smooth_dr)
        return reduce_compound(
            inputs,
            self,
            self.cross_entropy_weight,
            self._cross_entropy(inputs),
            self.dice_weight,
            self._power(-dice.log()),
        )

    def _power(self, negative_logarithm: Tensor) -> Tensor:
        return negative_logarithm.clamp(min=1e-7) ** self.gamma

    def _cross_entropy(self, inputs: LossInputs) -> Tensor:
        frequencies = self._frequencies(inputs)
        y = inputs.included(inputs.target)
        yes = self._power(inputs.included(negative_log(inputs)))
        if inputs.categorical:
            rarity = inputs.included(_rarity(frequencies, frequencies.sum()))
            return inputs.counted((inputs.weights() * rarity * y * yes).sum(1, keepdim=True))
        no = self._power(inputs.included(negative_log_complement(inputs)))
        one = torch.ones_like(frequencies)
        rare_yes = inputs.included(_rarity(frequencies, one))
        rare_no = inputs.included(_rarity(1 - frequencies, one))
        return inputs.counted(inputs.weights() * (rare_yes * y * yes + rare_no * (1 - y) * no))

    def _frequencies(self, inputs: LossInputs) -> Tensor:
        """Label frequencies `[1, C, 1, ...]`."""
        channels = inputs.logits.shape[1]
        if self.frequencies is None:
            sums = inputs.counted(inputs.target).sum((0, *inputs.spatial_axes))
            frequencies = sums / inputs.counts().sum().clamp(min=1)
        elif len(self.frequencies) == channels:
            frequencies = inputs.logits.new_tensor(self.frequencies)
        else:
            raise InputError(f"frequencies: got {len(self.frequencies)} numbers; expected {channels}, one a class")
        return frequencies.view(1, -1, *(1,) * len(inputs.spatial_axes))


def _rarity(frequencies: Tensor, total: Tensor) -> Tensor:
    """(sum f / f)^(1/2), and 0 for a label that does not occur."""
    present = frequencies > 0
    return torch.where(present, (total / torch.where(present, frequencies, 1.0)).sqrt(), 0.0)
