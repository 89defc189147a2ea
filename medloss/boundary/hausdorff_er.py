"""Hausdorff distance loss by erosion."""

import math
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from medloss.base import CommonArguments
from medloss.boundary.base import BoundaryLoss, karimi_recipe
from medloss.entry import register
from medloss.errors import InputError
from medloss.inputs import LossInputs


@register(
    "hausdorff_er",
    family="boundary",
    paper="Karimi and Salcudean 2019, arXiv 1904.10030",
    summary="squared errors that survive erosion, the longer the dearer",
    recipe=karimi_recipe("hausdorff_er"),
)
class HausdorffERLoss(BoundaryLoss):
    r"""Squared errors, eroded again and again: thick regions of error survive longest and cost most.

    $$\frac{1}{N} \sum_{k=1}^{K} \sum_x E_k k^a, \quad E_0 = (p - y)^2, \quad
    E_k = \mathrm{relu}(E_{k-1} * \mathrm{cross} - 0.5) / 0.5$$

    p: probability; y: target; K: `erosions`; a: `alpha`; N: voxels that count, an item and class; cross: the mean of a
    voxel and its face neighbours (5 in 2D, 7 in 3D), zero padding.

    The soft threshold at 0.5, rescaled to [0, 1], is our reading: the paper's could not be checked.

    Spacing: a step is one smallest spacing. Axis i is eroded at every n-th step, n = round(s_i / min s), and a step's
    cross has only the axes eroded in it.

    Two traps: an error thinner than the cross vanishes at the first step, and where all |p - y| < 0.707 so does
    everything: value and gradient are 0 there. So its paper trains it together with Dice.

    Args:
        alpha: a > 0. Default 2 (the paper's).
        erosions: K >= 1. Default 10 (the paper's).
        renormalize: stretch each step's map to [0, 1], an item and class, as kornia does.
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

    def voxels(self, inputs: LossInputs) -> Tensor:
        """Sum over the steps of E_k k^alpha."""
        errors = (inputs.included(inputs.probabilities()) - inputs.included(inputs.target)) ** 2
        if len(set(inputs.spacing)) == 1:
            return self._eroded_sum(errors, inputs.spacing[0], inputs.mask)
        masks = [None] * len(errors) if inputs.mask is None else inputs.mask.split(1)
        items = zip(errors.split(1), inputs.spacing, masks, strict=True)
        return torch.cat([self._eroded_sum(*item) for item in items])

    def _eroded_sum(self, error: Tensor, spacing: tuple[float, ...], mask: Tensor | None) -> Tensor:
        # Half is rounded up, and what rounding left a hair below half is half.
        strides = [math.floor(s / min(spacing) + 0.5 + 1e-6) for s in spacing]
        total = torch.zeros_like(error)
        for step in range(1, self.erosions + 1):
            axes = [2 + axis for axis, stride in enumerate(strides) if step % stride == 0]
            error = F.relu(_cross_mean(error, axes) - 0.5) / 0.5
            if self.renormalize:
                error = _stretched(error, mask)
            total = total + error * step**self.alpha
        return total


def _cross_mean(maps: Tensor, axes: list[int]) -> Tensor:
    """Mean of each voxel and its neighbours along `axes`; 0 outside the image."""
    total = maps
    for axis in axes:
        size = maps.shape[axis]
        edge = torch.zeros_like(maps.narrow(axis, 0, 1))
        total = total + torch.cat([maps.narrow(axis, 1, size - 1), edge], axis)
        total = total + torch.cat([edge, maps.narrow(axis, 0, size - 1)], axis)
    return total / (2 * len(axes) + 1)


def _stretched(maps: Tensor, mask: Tensor | None) -> Tensor:
    """Each item's and class's map, from its smallest to its largest counted value, stretched to [0, 1]."""
    axes = tuple(range(2, maps.ndim))
    if mask is None:
        low, high = maps.amin(axes, keepdim=True), maps.amax(axes, keepdim=True)
    else:
        low = torch.where(mask, maps, math.inf).amin(axes, keepdim=True)
        high = torch.where(mask, maps, -math.inf).amax(axes, keepdim=True)
    flat = ~(high > low)
    return torch.where(flat, maps, (maps - low) / torch.where(flat, 1.0, high - low))
