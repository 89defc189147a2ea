"""Mean and standard deviation of a map under a window around each voxel."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_window(size: int, sigma: float) -> list[float]:
    """A normalised Gaussian of `size` voxels (odd) with a standard deviation of `sigma` voxels."""
    window = [math.exp(-((i - size // 2) ** 2) / (2 * sigma**2)) for i in range(size)]
    return [value / sum(window) for value in window]


def local_contrast(maps: Tensor, window: list[float]) -> tuple[Tensor, Tensor]:
    """x - m and the standard deviation s of `maps` `[B, C, *spatial]` under a separable window.

    Replicate padding. m is the window's mean, s^2 its mean of (x - m)^2, both summed from differences to the
    centre voxel: exactly 0 on constants, never negative. The root of s^2 has gradient 0 at 0.
    """
    axes = maps.ndim - 2
    half = len(window) // 2
    padded = F.pad(maps, (half,) * (2 * axes), mode="replicate")
    shifts = list(itertools.product(range(len(window)), repeat=axes))
    weights = [math.prod([window[i] for i in shift]) for shift in shifts]
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
