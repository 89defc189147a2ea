"""Errors around which balls lie mostly on the wrong side, with the gradient, map by map."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from medloss.boundary.balls import ball, reach
from medloss.kernels import dispatch, self_check
from medloss.per_map import differentiable, new_results


def deep_errors(
    p: Tensor,
    y: Tensor,
    radii: Sequence[float],
    weights: Sequence[float],
    spacing: tuple[float, ...],
    voxel_weight: Tensor | None,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    """The sum over radii and voxels that `HausdorffCVLoss` averages, `[B, C]`, differentiable for `p` alone.

    Args:
        p: probabilities, `[B, C, *spatial]`.
        y: bool, as `p`.
        radii: mm; each ball fits into the image.
        weights: one per radius.
        spacing: mm.
        voxel_weight: a factor of each voxel's term, `[B, 1, *spatial]`, without gradient; None for 1.
        gradient: whether a backward pass may follow.

    Returns:
        The sums, and with `gradient` their gradient for `p`.
    """
    results: tuple[Tensor, Tensor] = _operator(
        p, y, list(radii), list(weights), list(spacing), voxel_weight, gradient
    )  # fmt: skip
    return results


@differentiable("hausdorff_cv")
@torch.library.custom_op("medloss::deep_errors", mutates_args=())
def _operator(
    p: Tensor,
    y: Tensor,
    radii: list[float],
    weights: list[float],
    spacing: list[float],
    voxel_weight: Tensor | None,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    sums, gradients = new_results(p, gradient)
    if voxel_weight is None and dispatch.choose(p.device.type, p.dtype, "balls") == "numba":
        from medloss.kernels.numba import balls

        if balls.supports(radii, spacing):
            return balls.deep_errors(p, y, radii, weights, spacing, gradients if gradient else None), gradients
    for b in range(p.shape[0]):
        for c in range(p.shape[1]):
            out = gradients[b, c] if gradient else None
            factor = () if voxel_weight is None else (voxel_weight[b, 0],)
            sums[b, c] = _deep_errors(p[b, c], y[b, c], radii, weights, spacing, out, *factor)
    return sums, gradients


def _deep_errors(
    p: Tensor,
    y: Tensor,
    radii: Sequence[float],
    weights: Sequence[float],
    spacing: Sequence[float],
    out: Tensor | None,
    voxel_weight: Tensor | None = None,
) -> Tensor:
    """The sum of one map `[*spatial]`; its gradient goes to `out`."""
    balls = _Balls(p, max(radii), tuple(spacing))
    y = y.to(p.dtype)
    by_p, by_y = balls.spectrum(p), balls.spectrum(y)
    full, empty = torch.zeros_like(p), torch.zeros_like(p)
    sides: list[Tensor] = []
    for radius, weight in zip(radii, weights, strict=True):
        near = balls.means(by_y, radius)
        # A normalised ball's mean of 1 - x is 1 less its mean of x.
        full.add_(_beyond_half(1 - near), alpha=2 * weight)
        empty.add_(_beyond_half(near.clone()), alpha=2 * weight)
        near = balls.means(by_p, radius)
        if out is not None:
            sides.append((near > 0.5).to(torch.int8).sub_((1 - near > 0.5).to(torch.int8)))
        empty.add_(_beyond_half(1 - near), alpha=2 * weight)
        full.add_(_beyond_half(near.clone()), alpha=2 * weight)
    del by_p, by_y, near
    error = p - y
    over, under = error.square() * p, error.square() * y
    if voxel_weight is not None:
        over.mul_(voxel_weight)
        under.mul_(voxel_weight)
    total = (full * over).add_(empty * under).sum()
    if out is None:
        return total
    out.copy_(full.mul_(error).mul_(2 * p + error)).add_(empty.mul_(error).mul_(y), alpha=2)
    if voxel_weight is not None:
        out.mul_(voxel_weight)
    del full, empty
    pulls: Tensor | None = None
    for radius, weight, side in zip(radii, weights, sides, strict=True):
        pull = torch.where(side > 0, over, torch.where(side < 0, -under, 0.0))
        by_radius = balls.zeros_around(pull).mul_(balls.kernel(radius)).mul_(2 * weight)
        pulls = by_radius if pulls is None else pulls.add_(by_radius)
    assert pulls is not None
    out.add_(balls.fall_inside(pulls))
    return total


def _beyond_half(share: Tensor) -> Tensor:
    return share.sub_(0.5).relu_()


class _Balls:
    """Means of maps under balls of several radii, border voxels repeated, by Fourier transforms of the padded maps."""

    def __init__(self, maps: Tensor, largest: float, spacing: tuple[float, ...]) -> None:
        self.spacing, self.shape = spacing, maps.shape
        self.pad = reach(largest, spacing)
        # What wraps round a border stays within the padding, so zeros up to a size of small factors do no harm.
        self.size = tuple(_fast_length(n + 2 * h) for n, h in zip(maps.shape, self.pad, strict=True))
        self.dtype, self.device = maps.dtype, maps.device

    def spectrum(self, maps: Tensor) -> Tensor:
        padding = [h for half in reversed(self.pad) for h in (half, half)]
        return torch.fft.rfftn(F.pad(maps[None, None], padding, mode="replicate")[0, 0], s=self.size)

    def means(self, spectrum: Tensor, radius: float) -> Tensor:
        return self._inside(torch.fft.irfftn(spectrum * self.kernel(radius), s=self.size))

    def kernel(self, radius: float) -> Tensor:
        return _ball_spectrum(radius, self.spacing, self.size, self.dtype, self.device)

    def zeros_around(self, maps: Tensor) -> Tensor:
        """The spectrum of a map with zeros around it."""
        padding = [h for half in reversed(self.pad) for h in (half, half)]
        return torch.fft.rfftn(F.pad(maps, padding), s=self.size)

    def fall_inside(self, spectrum: Tensor) -> Tensor:
        """A padded map by its spectrum, what lies in the padding added to the border voxel that was repeated there."""
        maps = torch.fft.irfftn(spectrum, s=self.size)
        for axis, (half, n) in enumerate(zip(self.pad, self.shape, strict=True)):
            if half:
                maps.narrow(axis, half, 1).add_(maps.narrow(axis, 0, half).sum(axis, keepdim=True))
                maps.narrow(axis, half + n - 1, 1).add_(maps.narrow(axis, half + n, half).sum(axis, keepdim=True))
            maps = maps.narrow(axis, half, n)
        return maps

    def _inside(self, maps: Tensor) -> Tensor:
        for axis, (half, n) in enumerate(zip(self.pad, self.shape, strict=True)):
            maps = maps.narrow(axis, half, n)
        return maps


@lru_cache(maxsize=64)
def _ball_spectrum(
    radius: float, spacing: tuple[float, ...], size: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Fourier transform of the normalised ball around the origin, wrapped round the borders; it is real."""
    offsets = [torch.arange(n, dtype=torch.float64, device="cpu") for n in size]
    held = ball(radius, [torch.minimum(o, n - o) for o, n in zip(offsets, size, strict=True)], spacing).double()
    return torch.fft.rfftn(held / held.sum()).real.to(dtype).to(device)


def _fast_length(n: int) -> int:
    """The next number without a prime factor above 11: of such lengths Fourier transforms are fast."""
    while True:
        left = n
        for factor in (2, 3, 5, 7, 11):
            while left % factor == 0:
                left //= factor
        if left == 1:
            return n
        n += 1


def _small_case(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    # A row holds a whole vector of the compiled kernels, and a part of one.
    p = (torch.arange(1400, dtype=torch.float64, device="cpu") * 0.13).sin().add(1).div(2).view(1, 1, 5, 7, 40)
    p = p.to(device, dtype)
    return list(_operator(p, p.roll(3, 4) > 0.5, [1.0, 2.1], [1.0, 4.0], [1.0, 0.7, 0.8], None, True))


self_check.register("balls", _small_case)
