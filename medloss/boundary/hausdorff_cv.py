"""Hausdorff distance loss by convolution with balls."""

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from medloss.base import CommonArguments
from medloss.boundary.base import BoundaryLoss, karimi_recipe
from medloss.entry import register
from medloss.errors import InputError
from medloss.inputs import LossInputs

# A voxel belongs to a ball when its centre lies within the radius, give or take rounding.
_SLACK = 1 + 1e-6


@register(
    "hausdorff_cv",
    family="boundary",
    paper="Karimi and Salcudean 2019, arXiv 1904.10030",
    summary="squared errors that lie a ball's radius deep on the wrong side",
    recipe=karimi_recipe("hausdorff_cv"),
)
class HausdorffCVLoss(BoundaryLoss):
    r"""Squared errors around which a ball of radius r lies mostly on one side, summed over radii.

    $$\frac{1}{N} \sum_r r^a \sum_x \big[(f(B_r * (1-y)) + f(B_r * p))\, U + (f(B_r * (1-p)) + f(B_r * y))\, V\big]$$

    U = (p - y)^2 p (over-segmented), V = (p - y)^2 y (under-segmented), f(x) = relu(x - 0.5) / 0.5; p: probability;
    y: target; B_r: normalised ball of radius r in mm (an ellipsoid in voxels), replicate padding; a: `alpha`; N:
    voxels that count, an item and class. Gradient flows through every p.

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

    def voxels(self, inputs: LossInputs) -> Tensor:
        """Sum over the radii."""
        p, y = inputs.included(inputs.probabilities()), inputs.included(inputs.target)
        if len(set(inputs.spacing)) == 1:
            return self._over_radii(p, y, inputs.spacing[0])
        items = zip(p.split(1), y.split(1), inputs.spacing, strict=True)
        return torch.cat([self._over_radii(*item) for item in items])

    def _over_radii(self, p: Tensor, y: Tensor, spacing: tuple[float, ...]) -> Tensor:
        size = p.shape[2:]
        radii = [r for r in self.radii if all(2 * h + 1 <= n for h, n in zip(_half(r, spacing), size, strict=True))]
        if not radii:
            warnings.warn(
                f"hausdorff_cv: no ball of radii {self.radii} mm fits into {tuple(size)} voxels of {spacing} mm; "
                "the loss is 0: pass smaller radii",
                stacklevel=2,
            )
            return p * 0.0
        error = (p - y) ** 2
        over, under = error * p, error * y
        blur_p, blur_y = _BallFilter(p, max(radii), spacing), _BallFilter(y, max(radii), spacing)
        total = torch.zeros_like(error)
        for radius in radii:
            near_p, near_y = blur_p(radius), blur_y(radius)
            # A normalised ball's mean of 1 - x is 1 less its mean of x.
            value = (_soft(1 - near_y) + _soft(near_p)) * over + (_soft(1 - near_p) + _soft(near_y)) * under
            total = total + radius**self.alpha * value
        return total


def _soft(share: Tensor) -> Tensor:
    return F.relu(share - 0.5) / 0.5


def _half(radius: float, spacing: tuple[float, ...]) -> list[int]:
    """The ball's reach in voxels, an axis."""
    return [math.floor(radius * _SLACK / s) for s in spacing]


class _BallFilter:
    """Means of a map under balls of several radii, by one Fourier transform of the padded map."""

    def __init__(self, maps: Tensor, largest: float, spacing: tuple[float, ...]) -> None:
        self.spacing = spacing
        self.shape = maps.shape
        self.pad = _half(largest, spacing)
        padding = [h for half in reversed(self.pad) for h in (half, half)]
        padded = F.pad(maps, padding, mode="replicate")
        # What wraps round a border stays within the padding, so zeros up to a size of small factors do no harm.
        self.size = tuple(_fast_length(n) for n in padded.shape[2:])
        self.axes = tuple(range(2, maps.ndim))
        self.spectrum = torch.fft.rfftn(padded, s=self.size, dim=self.axes)

    def __call__(self, radius: float) -> Tensor:
        # torch's compiler cannot look into a cache, and folds the constant itself.
        make = _ball_spectrum.__wrapped__ if torch.compiler.is_compiling() else _ball_spectrum
        kernel = make(radius, self.spacing, self.size, self.spectrum.real.dtype).to(self.spectrum.device)
        means = torch.fft.irfftn(self.spectrum * kernel, s=self.size, dim=self.axes)
        for axis, (half, n) in enumerate(zip(self.pad, self.shape[2:], strict=True), start=2):
            means = means.narrow(axis, half, n)
        return means


@lru_cache(maxsize=64)
def _ball_spectrum(radius: float, spacing: tuple[float, ...], size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Fourier transform of the normalised ball around the origin, wrapped round the borders; it is real."""
    squares = torch.zeros(size, dtype=torch.float64)
    for axis, (n, s) in enumerate(zip(size, spacing, strict=True)):
        offsets = torch.arange(n, dtype=torch.float64)
        offsets = torch.minimum(offsets, n - offsets) * s
        squares = squares + (offsets**2).view(-1, *(1,) * (len(size) - 1 - axis))
    ball = (squares.sqrt() <= radius * _SLACK).to(torch.float64)
    return torch.fft.rfftn(ball / ball.sum()).real.to(dtype)


def _fast_length(n: int) -> int:
    """The next number without a prime factor above 5: of such lengths Fourier transforms are fast."""
    while True:
        left = n
        for factor in (2, 3, 5):
            while left % factor == 0:
                left //= factor
        if left == 1:
            return n
        n += 1
