"""Hausdorff distance loss by erosion."""

from typing import Unpack

from torch import Tensor

from medloss.base import CommonArguments
from medloss.boundary.base import MeanOverVoxelsLoss, karimi_recipe
from medloss.boundary.erosion import eroded_sums
from medloss.errors import InputError
from medloss.inputs import LossInputs
from medloss.loss_entry import register
from medloss.per_map import sums_of_probabilities


@register(
    "hausdorff_er",
    family="boundary",
    paper="Karimi and Salcudean 2019, arXiv 1904.10030",
    summary="squared errors weighted by the number of erosions they survive",
    recipe=karimi_recipe(
        "hausdorff_er",
        clip=1.0,
        note=". Each erosion doubles the gradient, while the value, which the weight follows, stays near 0: single "
        "steps had gradients a thousand times as large as others, which an adaptive optimizer remembers. Ours: the "
        "norm of a step's gradient is clipped at 1",
    ),
)
class HausdorffERLoss(MeanOverVoxelsLoss):
    r"""Squared errors, eroded again and again: thick regions of error survive longest and cost most.

    $$\frac{1}{N} \sum_{k=1}^{K} \sum_x E_k k^a, \quad E_0 = (p - y)^2, \quad
    E_k = \mathrm{relu}(E_{k-1} * \mathrm{cross} - 0.5) / 0.5$$

    p: probability; y: target; K: `erosions`; a: `alpha`; N: voxels that count, per item and class; cross: the mean of a
    voxel and its face neighbours (5 in 2D, 7 in 3D), zero padding.

    The soft threshold at 0.5, rescaled to [0, 1], is our reading: the paper's could not be checked.

    Spacing: a step is one smallest spacing. Axis i is eroded at every n-th step, n = round(s_i / min s), and a step's
    cross has only the axes eroded in it.

    Two pitfalls: an error thinner than the cross vanishes at the first step, and where all |p - y| < 0.707 so does
    everything: value and gradient are 0 there. So its paper trains it together with Dice.

    Args:
        alpha: a > 0. Default 2 (the paper's).
        erosions: K >= 1. Default 10 (the paper's).
        renormalize: stretch each step's map to [0, 1], per item and class, as kornia does.
        **common: the arguments of `SegmentationLoss`; `batch` is ignored.

    Raises:
        InputError: `alpha` not positive, `erosions` below 1; a soft target.

    References:
        Karimi and Salcudean (2019), Reducing the Hausdorff Distance in Medical Image Segmentation with
        Convolutional Neural Networks, arXiv 1904.10030.

    Example:
        >>> import torch, medloss
        >>> label = torch.zeros(1, 1, 16, 16)
        >>> label[..., 2:14, 2:14] = 1
        >>> loss = medloss.HausdorffERLoss(sigmoid=True)
        >>> all_missed = loss(torch.full_like(label, -20.0), label)
        >>> half_missed = loss(40 * label.clone().index_fill_(3, torch.arange(8), 0) - 20, label)
        >>> (all_missed > 2 * half_missed).item()
        True
    """

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        erosions: int = 10,
        renormalize: bool = False,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(**common)
        if not alpha > 0:
            raise InputError(f"alpha: got {alpha}; expected a positive number")
        if erosions < 1:
            raise InputError(f"erosions: got {erosions}; expected 1 or more")
        self.alpha = float(alpha)
        self.erosions = int(erosions)
        self.renormalize = renormalize

    def sums(self, inputs: LossInputs) -> Tensor:
        """Sum over the steps of E_k k^alpha."""
        y = inputs.included(inputs.target_masks())
        weights = [step**self.alpha for step in range(1, self.erosions + 1)]
        given = (y, inputs.mask, inputs.spacing, weights, self.renormalize, inputs.voxel_weight)
        return sums_of_probabilities("hausdorff_er", inputs, lambda p, gradient: eroded_sums(p, *given, gradient))
