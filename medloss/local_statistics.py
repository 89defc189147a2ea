"""Mean and standard deviation of a map under a window around each voxel.

Both are computed axis by axis: after an axis, a voxel has the mean of its line, and its variance is the mean of
the line's variances plus the variance of the line's means. So the work grows with the window's side, not its volume.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from medloss.kernels import dispatch, self_check

#: Voxels processed together if no gradient is needed: intermediate results stay in the cache.
_SLAB_VOXELS = 1 << 17


def gaussian_window(size: int, sigma: float) -> list[float]:
    """A normalised Gaussian of `size` voxels (odd) with a standard deviation of `sigma` voxels."""
    window = [math.exp(-((i - size // 2) ** 2) / (2 * sigma**2)) for i in range(size)]
    return [value / sum(window) for value in window]


def local_contrast(maps: Tensor, window: list[float]) -> tuple[Tensor, Tensor]:
    """x - m and the standard deviation s of `maps` `[B, C, *spatial]` under a separable, symmetric window.

    Replicate padding. m is the window's mean, s^2 its mean of (x - m)^2, both summed from differences between
    voxels: exactly 0 on constants, never negative. The root of s^2 has gradient 0 at 0.
    """
    half = len(window) // 2
    padded = F.pad(maps, (half,) * (2 * (maps.ndim - 2)), mode="replicate")
    offset, variance = _offset_and_variance(padded, window)
    positive = ~(variance <= 0)
    deviation = torch.where(positive, torch.where(positive, variance, 1.0).sqrt(), 0.0)
    return -offset, deviation


def structure(maps: Tensor, window: list[float], constant: float) -> Tensor:
    """(x - m + C) / (s + C), with x - m and s as in `local_contrast`, and C = `constant`."""
    contrast, deviation = local_contrast(maps, window)
    return (contrast + constant) / (deviation + constant)


def structural_error(
    prediction: Tensor, target: Tensor, window: list[float], constant: float, *, average: bool
) -> Tensor:
    """|structure(target) - structure(prediction)|, without gradient, and with little memory in addition to the result.

    Args:
        prediction: `[B, C, *spatial]`, 2D or 3D, float32 or float64.
        target: as `prediction`, in any type.
        window: as in `local_contrast`.
        constant: C > 0.
        average: whether the mean over channels is wanted, `[B, 1, *spatial]`.
    """
    error: Tensor = _structural_error(prediction.detach(), target, window, constant, average)
    return error


# An operator, so that torch's compiler does not look into the loops and arrays of a kernel set.
@torch.library.custom_op("medloss::structural_error", mutates_args=())
def _structural_error(
    prediction: Tensor, target: Tensor, window: list[float], constant: float, average: bool
) -> Tensor:
    if prediction.numel() and dispatch.choose(prediction.device.type, prediction.dtype, "structure") == "numba":
        from medloss.kernels.numba import structure as compiled

        return compiled.structural_error(prediction, target, window, constant, average)
    return _by_slabs(prediction, target, window, constant, average)


@_structural_error.register_fake
def _(prediction: Tensor, target: Tensor, window: list[float], constant: float, average: bool) -> Tensor:
    maps = 1 if average else prediction.shape[1]
    return prediction.new_empty((prediction.shape[0], maps, *prediction.shape[2:]))


def _by_slabs(prediction: Tensor, target: Tensor, window: list[float], constant: float, average: bool) -> Tensor:
    items, channels = prediction.shape[:2]
    spatial = prediction.shape[2:]
    error = prediction.new_zeros((items, 1 if average else channels, *spatial))
    thickness = max(1, _SLAB_VOXELS // max(1, spatial[1:].numel()))
    # A GPU's cache holds no more than this, but its launches cost more than its memory.
    thickness = thickness if prediction.device.type == "cpu" else spatial[0]
    for item in range(items):
        for channel in range(channels):
            out = error[item, 0 if average else channel]
            for begin in range(0, spatial[0], thickness):
                end = min(begin + thickness, spatial[0])
                slabs = [
                    _slab_structure(maps[item, channel], begin, end, window, constant, error.dtype)
                    for maps in (prediction, target)
                ]
                out[begin:end] += slabs[0].sub_(slabs[1]).abs_()
    return error.div_(channels) if average else error


def _slab_structure(
    x: Tensor, begin: int, end: int, window: list[float], constant: float, dtype: torch.dtype
) -> Tensor:
    """`structure` of the voxels from `begin` to `end` along the first axis."""
    half = len(window) // 2
    low, high = max(begin - half, 0), min(end + half, x.shape[0])
    around = [half, half] * (x.ndim - 1) + [low - begin + half, end + half - high]
    padded = F.pad(x[low:high].to(dtype)[None, None], around, mode="replicate")
    offset, variance = _offset_and_variance(padded, window)
    return offset.neg_().add_(constant).div_(variance.sqrt_().add_(constant))[0, 0]


def _offset_and_variance(padded: Tensor, window: list[float]) -> tuple[Tensor, Tensor]:
    """m - x and s^2 of the voxels that have a whole window in `padded`."""
    half = len(window) // 2
    mean, total, variance = padded, None, None
    for axis in range(2, padded.ndim):
        size = padded.shape[axis] - 2 * half
        centre = mean.narrow(axis, half, size)
        offset, means = torch.zeros_like(centre), torch.zeros_like(centre)
        for i, weight in enumerate(window):
            if i != half:
                difference = mean.narrow(axis, i, size) - centre
                offset.add_(difference, alpha=weight)
                means.addcmul_(difference, difference, value=weight)
        # The voxel itself has a share in the mean: little is lost in this difference.
        means.addcmul_(offset, offset, value=-1).clamp_min_(0)
        if variance is not None:
            for i, weight in enumerate(window):
                means.add_(variance.narrow(axis, i, size), alpha=weight)
        variance = means
        total = offset if total is None else total.narrow(axis, half, size) + offset
        mean = centre + offset
    assert total is not None and variance is not None
    return total, variance


def _small_case(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    p = (torch.arange(2 * 168, dtype=torch.float64, device="cpu") * 0.05).sin().add(1).div(2).view(1, 2, 4, 6, 7)
    p = p.to(device, dtype)
    return [_structural_error(p, p.roll(2, 4) > 0.5, [0.2, 0.6, 0.2], 0.01, average) for average in (False, True)]


self_check.register("structure", _small_case)
