"""Mean and standard deviation of a map under a window around each voxel."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_window(size: int, sigma: float, like: Tensor) -> Tensor:
    """A normalised Gaussian of `size` voxels (odd), standard deviation `sigma` voxels, in the type of `like`."""
    offsets = torch.arange(size, dtype=like.dtype, device=like.device) - size // 2
    window = torch.exp(-(offsets**2) / (2 * sigma**2))
    return window / window.sum()


def local_contrast(maps: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """x - m and the standard deviation s of `maps` `[B, C, *spatial]` under a separable window.

    Replicate padding. m is the window's mean, s^2 its mean of (x - m)^2, both summed from differences to the
    centre voxel: exactly 0 on constants, never negative. The root of s^2 has gradient 0 at 0.
    """
    axes = maps.ndim - 2
    half = window.numel() // 2
    padded = F.pad(maps, (half,) * (2 * axes), mode="replicate")
    shifts = list(itertools.product(range(window.numel()), repeat=axes))
    weights = [math.prod((window[i] for i in shift), start=window.new_ones(())) for shift in shifts]
    mean_offset = torch.zeros_like(maps)
    for shift, weight in zip(shifts, weights, strict=True):
        mean_offset = mean_offset + weight * (_shifted(padded, shift, maps.shape) - maps)
    variance = torch.zeros_like(maps)
    for shift, weight in zip(shifts, weights, strict=True):
        variance = variance + weight * (_shifted(padded, shift, maps.shape) - maps - mean_offset) ** 2
    positive = ~(variance <= 0)
    deviation = torch.where(positive, torch.where(positive, variance, 1.0).sqrt(), 0.0)
    return -mean_offset, deviation


def _shifted(padded: Tensor, shift: tuple[int, ...], shape: torch.Size) -> Tensor:
    for axis, start in enumerate(shift, start=2):
        padded = padded.narrow(axis, start, shape[axis])
    return padded
