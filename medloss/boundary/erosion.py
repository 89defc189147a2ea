"""The sum of squared errors that survive soft erosions, with its gradient, map by map."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medloss.kernels import dispatch, self_check
from medloss.per_map import differentiable, new_results
from medloss.spacing import step_intervals


def eroded_sums(
    p: Tensor,
    y: Tensor,
    mask: Tensor | None,
    spacing: Sequence[tuple[float, ...]],
    weights: Sequence[float],
    renormalize: bool,
    voxel_weight: Tensor | None,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Sum over steps k and counted voxels x of E_k(x) weights[k - 1] w(x), `[B, C]`, differentiable for `p` alone.

    Args:
        p: probabilities, `[B, C, *spatial]`.
        y: bool, as `p`.
        mask: `[B, 1, *spatial]` bool; None when all voxels count.
        spacing: mm, one tuple per item.
        weights: one per step.
        renormalize: stretch each step's map to [0, 1].
        voxel_weight: w, `[B, 1, *spatial]`, 0 at masked voxels, without gradient; None for 1.
        gradient: whether a backward pass may follow.

    Returns:
        The sums, and with `gradient` their gradient for `p`.
    """
    strides = [stride for item in spacing for stride in step_intervals(item)]
    results: tuple[Tensor, Tensor] = _operator(
        p, y, mask, strides, list(weights), renormalize, voxel_weight, gradient
    )  # fmt: skip
    return results


@differentiable("hausdorff_er")
@torch.library.custom_op("medloss::eroded_sums", mutates_args=())
def _operator(
    p: Tensor,
    y: Tensor,
    mask: Tensor | None,
    strides: list[int],
    weights: list[float],
    renormalize: bool,
    voxel_weight: Tensor | None,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    sums, gradients = new_results(p, gradient)
    dims = p.ndim - 2
    plain = not renormalize and voxel_weight is None
    if plain and dispatch.choose(p.device.type, p.dtype, "erosion") == "numba":
        from medloss.kernels.numba import erosion

        return erosion.eroded_sums(p, y, mask, strides, weights, gradients if gradient else None), gradients
    for b in range(p.shape[0]):
        item = (None if mask is None else mask[b, 0], strides[b * dims : (b + 1) * dims], weights)
        for c in range(p.shape[1]):
            out = gradients[b, c] if gradient else None
            factor = None if voxel_weight is None else voxel_weight[b, 0]
            sums[b, c] = _eroded_sum(p[b, c], y[b, c], *item, renormalize, factor, out)
    return sums, gradients


def _eroded_sum(
    p: Tensor,
    y: Tensor,
    mask: Tensor | None,
    strides: list[int],
    weights: list[float],
    renormalize: bool,
    voxel_weight: Tensor | None,
    out: Tensor | None,
) -> Tensor:
    """The sum of one map `[*spatial]`; its gradient goes to `out`."""
    error, total = (p - y.to(p.dtype)).square_(), p.new_zeros(())
    cross = torch.empty_like(error) if out is None else out
    bits = error.new_zeros((-(-len(weights) // 8), *error.shape) if out is not None else (0,), dtype=torch.uint8)
    stretched: list[_Stretched] = []
    steps = 0
    for step, weight in enumerate(weights, start=1):
        axes = _axes(step, strides)
        _cross_sum(error, axes, cross)
        torch.relu_(cross.div_(2 * len(axes) + 1).sub_(0.5).mul_(2))
        if out is not None:
            bits[(step - 1) // 8] |= (cross > 0).to(torch.uint8) << ((step - 1) % 8)
        if renormalize:
            stretched.append(_Stretched(cross, mask, out is not None))
        error, cross = cross, error
        counted = error if mask is None else torch.where(mask, error, 0.0)
        total += weight * (counted if voxel_weight is None else counted * voxel_weight).sum()
        steps = step
        # On a GPU the check would wait for the device.
        if error.device.type == "cpu" and not error.any():
            break
    if out is None:
        return total
    gradient, other = error.zero_(), cross
    for step in range(steps, 0, -1):
        weight, axes = weights[step - 1], _axes(step, strides)
        if voxel_weight is not None:
            gradient.add_(voxel_weight, alpha=weight)
        elif mask is None:
            gradient += weight
        else:
            gradient += mask.to(gradient.dtype).mul_(weight)
        if renormalize:
            stretched.pop().backward(gradient)
        gradient.mul_(bits[(step - 1) // 8].bitwise_and(1 << (step - 1) % 8) != 0).mul_(2 / (2 * len(axes) + 1))
        _cross_sum(gradient, axes, other)
        gradient, other = other, gradient
    torch.mul(gradient, (p - y.to(p.dtype)).mul_(2), out=out)
    return total


def _axes(step: int, strides: list[int]) -> list[int]:
    return [axis for axis, stride in enumerate(strides) if step % stride == 0]


def _cross_sum(maps: Tensor, axes: list[int], out: Tensor) -> None:
    """Each voxel and its neighbours along `axes`; 0 outside the image."""
    out.copy_(maps)
    for axis in axes:
        last = maps.shape[axis] - 1
        out.narrow(axis, 0, last).add_(maps.narrow(axis, 1, last))
        out.narrow(axis, 1, last).add_(maps.narrow(axis, 0, last))


class _Stretched:
    """A map, in place from its smallest to its largest counted value stretched to [0, 1], and the way back."""

    def __init__(self, maps: Tensor, mask: Tensor | None, gradient: bool) -> None:
        low = (maps if mask is None else torch.where(mask, maps, math.inf)).amin()
        high = (maps if mask is None else torch.where(mask, maps, -math.inf)).amax()
        self.flat, self.mask = ~(high > low), mask
        self.width = torch.where(self.flat, 1.0, high - low)
        if gradient:
            self.lowest, self.highest = self._counted(maps == low), self._counted(maps == high)
        maps.sub_(torch.where(self.flat, 0.0, low)).div_(self.width)
        self.maps = maps.clone() if gradient else None

    def backward(self, gradient: Tensor) -> None:
        """Turn the gradient for the stretched map into that for the map; ties share theirs."""
        assert self.maps is not None
        by_high = -(gradient * self.maps).sum()
        by_low = -gradient.sum() - by_high
        for at, by in ((self.lowest, by_low), (self.highest, by_high)):
            gradient += at * torch.where(self.flat, 0.0, by / at.sum().clamp(min=1))
        gradient /= self.width

    def _counted(self, at: Tensor) -> Tensor:
        return at if self.mask is None else at & self.mask


def _small_case(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    p = (torch.arange(2 * 168, dtype=torch.float64, device="cpu") * 0.05).sin().add(1).div(2).view(2, 1, 4, 6, 7)
    p, mask = p.to(device, dtype), (p > 0.1).to(device)
    # Errors that survive: the reference is nearly the complement.
    return list(_operator(p, p.roll(2, 4) < 0.5, mask, [1, 1, 1, 3, 1, 2], [1.0, 4.0, 9.0], False, None, True))


self_check.register("erosion", _small_case)
