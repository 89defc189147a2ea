"""Hausdorff distance loss by convolution with balls."""

import math
import warnings
from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from medloss.base import CommonArguments
from medloss.boundary.ball_means import deep_errors
from medloss.boundary.balls import fitting
from medloss.boundary.base import MeanOverVoxelsLoss, karimi_recipe
from medloss.errors import InputError
from medloss.inputs import LossInputs
from medloss.loss_entry import register
from medloss.per_map import sums_of_probabilities


@register(
    "hausdorff_cv",
    family="boundary",
    paper="Karimi and Salcudean 2019, arXiv 1904.10030",
    summary="squared errors that lie a ball's radius deep on the wrong side",
    recipe=karimi_recipe("hausdorff_cv"),
)
class HausdorffCVLoss(MeanOverVoxelsLoss):
    r"""Squared errors around which a ball of radius r lies mostly on one side, summed over radii.

    $$\frac{1}{N} \sum_r r^a \sum_x \big[(f(B_r * (1-y)) + f(B_r * p))\, U + (f(B_r * (1-p)) + f(B_r * y))\, V\big]$$

    U = (p - y)^2 p (over-segmented), V = (p - y)^2 y (under-segmented), f(x) = relu(x - 0.5) / 0.5; p: probability;
    y: target; B_r: normalised ball of radius r in mm (an ellipsoid in voxels), replicate padding; a: `alpha`; N:
    voxels that count, per item and class. Gradient flows through every p.

    The equation is Karimi's as we know it: the paper could not be checked. With radii in mm the value grows with the
    spacing to the power alpha.

    A radius counts when its ball fits into the image on every axis. If none does the value is 0, with a warning. Alone
    and from scratch the loss collapses to background: its paper trains it together with Dice.

    Args:
        alpha: a > 0. Default 2 (the paper's).
        radii: mm. Default 3, 6, ..., 18 (ours: the paper's are voxels).
        **common: the arguments of `SegmentationLoss`; `batch` is ignored.

    Raises:
        InputError: `alpha` or a radius not positive, no radius; a soft target.

    References:
        Karimi and Salcudean (2019), Reducing the Hausdorff Distance in Medical Image Segmentation with
        Convolutional Neural Networks, arXiv 1904.10030.

    Example:
        >>> import torch, medloss
        >>> label = torch.zeros(1, 1, 16, 16)
        >>> label[..., 2:14, 2:14] = 1
        >>> loss = medloss.HausdorffCVLoss(sigmoid=True, radii=(2.0, 4.0))
        >>> all_missed = loss(torch.full_like(label, -20.0), label)
        >>> half_missed = loss(40 * label.clone().index_fill_(3, torch.arange(8), 0) - 20, label)
        >>> (all_missed > half_missed).item()
        True
    """

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        radii: Sequence[float] = (3.0, 6.0, 9.0, 12.0, 15.0, 18.0),
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(**common)
        if not alpha > 0:
            raise InputError(f"alpha: got {alpha}; expected a positive number")
        if len(radii) == 0 or not all(r > 0 and math.isfinite(r) for r in radii):
            raise InputError(f"radii: got {list(radii)}; expected one or more positive numbers of mm")
        self.alpha = float(alpha)
        self.radii = tuple(float(r) for r in radii)

    def sums(self, inputs: LossInputs) -> Tensor:
        """Sum over the radii."""
        # A masked voxel has no error, and so no value.
        y = inputs.included(inputs.target_masks())
        return sums_of_probabilities("hausdorff_cv", inputs, lambda p, gradient: self._sums(p, y, inputs, gradient))

    def _sums(self, p: Tensor, y: Tensor, inputs: LossInputs, gradient: bool) -> tuple[Tensor, Tensor]:
        if len(set(inputs.spacing)) == 1:
            return self._alike(p, y, inputs.spacing[0], inputs.voxel_weight, gradient)
        voxel_weights = [None] * len(p) if inputs.voxel_weight is None else inputs.voxel_weight.split(1)
        items = zip(p.split(1), y.split(1), inputs.spacing, voxel_weights, strict=True)
        sums, gradients = zip(*(self._alike(*item, gradient) for item in items), strict=True)
        return torch.cat(sums), torch.cat(gradients)

    def _alike(
        self, p: Tensor, y: Tensor, spacing: tuple[float, ...], voxel_weight: Tensor | None, gradient: bool
    ) -> tuple[Tensor, Tensor]:
        """The sums of items of one spacing."""
        size = p.shape[2:]
        radii = fitting(self.radii, spacing, size)
        if not radii:
            warnings.warn(
                f"hausdorff_cv: no ball of radii {self.radii} mm fits into {tuple(size)} voxels of {spacing} mm; "
                "the loss is 0: pass smaller radii",
                stacklevel=2,
            )
            return (p * 0.0).flatten(2).sum(2), torch.zeros_like(p)
        return deep_errors(p, y, radii, [r**self.alpha for r in radii], spacing, voxel_weight, gradient)
