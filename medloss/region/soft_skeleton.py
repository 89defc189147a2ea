"""Soft skeletons by minima and maxima over neighbours, map by map, with their gradient.

The backward pass computes a map's skeleton again: what lies in between is some maps of one class, not of all.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from medloss.errors import InputError
from medloss.spacing import step_intervals

_Extreme = Callable[..., Tensor]


def skeleton_sums(
    p: Tensor,
    y: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    spacing: Sequence[tuple[float, ...]],
    steps: int,
) -> Tensor:
    """Sums over the counted voxels of K(p) y, K(p), K(y) p and K(y), `[4, B, C]`, differentiable for `p` alone.

    Args:
        p: probabilities, `[B, C, *spatial]`.
        y: bool, as `p`.
        mask: `[B, 1, *spatial]` bool; None when all voxels count.
        weight: how often each voxel counts, as `mask`, in the type of `p`; None for once.
        spacing: mm, one tuple per item.
        steps: erosions.
    """
    intervals = [n for item in spacing for n in step_intervals(item)]
    sums: Tensor = _sums(p, y, mask, weight, intervals, steps)[0]
    return sums


def soft_skeleton(x: Tensor, axes: Sequence[Sequence[int]]) -> Tensor:
    """K of one map `[*spatial]`, of floats or bool.

    Args:
        x: values in [0, 1].
        axes: of each step's cross and box.
    """
    skeleton = torch.zeros_like(x)
    for of_step in axes:
        eroded = _over_cross(x, of_step, torch.minimum)
        opened = _dilated(eroded, of_step)[-1]
        if x.dtype == torch.bool:
            skeleton |= x & ~opened
        else:
            skeleton += torch.relu_((1 - skeleton).mul_(torch.relu_(x - opened)))
        x = eroded
        # On a GPU the check would wait for the device.
        if x.device.type == "cpu" and not x.any():
            break
    return skeleton


@torch.library.custom_op("medloss::skeleton_sums", mutates_args=())
def _sums(
    p: Tensor, y: Tensor, mask: Tensor | None, weight: Tensor | None, intervals: list[int], steps: int
) -> tuple[Tensor, Tensor]:
    """The sums, and K(y) of the counted voxels."""
    sums, skeletons = p.new_empty((4, *p.shape[:2])), torch.empty_like(y)
    for b, c, counted, axes in _maps(p, mask, intervals, steps):
        of_p, of_y = soft_skeleton(p[b, c], axes), soft_skeleton(y[b, c], axes)
        skeletons[b, c] = of_y if counted is None else of_y & counted
        values = (of_p * y[b, c], of_p, of_y * p[b, c], of_y.to(p.dtype))
        for row, value in enumerate(values):
            sums[row, b, c] = _weighed(value, counted, weight, b).sum()
    return sums, skeletons


@torch.library.custom_op("medloss::skeleton_sums_backward", mutates_args=())
def _sums_backward(
    gradients: Tensor,
    p: Tensor,
    y: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    skeletons: Tensor,
    intervals: list[int],
    steps: int,
) -> Tensor:
    result = torch.empty_like(p)
    for b, c, counted, axes in _maps(p, mask, intervals, steps):
        of_skeleton = _weighed(gradients[0, b, c] * y[b, c] + gradients[1, b, c], counted, weight, b)
        of_p = gradients[2, b, c] * skeletons[b, c]
        of_p = of_p if weight is None else of_p * weight[b, 0]
        result[b, c] = _through_skeleton(p[b, c], axes, of_skeleton).add_(of_p)
    return result


def _weighed(values: Tensor, counted: Tensor | None, weight: Tensor | None, item: int) -> Tensor:
    """One map's values as often as their voxels count."""
    values = values if counted is None else torch.where(counted, values, 0.0)
    return values if weight is None else values * weight[item, 0]


def _maps(p: Tensor, mask: Tensor | None, intervals: list[int], steps: int) -> Any:
    """Item, class, the item's mask and the axes of each step, map by map."""
    dims = p.ndim - 2
    for b in range(p.shape[0]):
        of_item = intervals[b * dims : (b + 1) * dims]
        axes = [[axis for axis, n in enumerate(of_item) if step % n == 0] for step in range(1, steps + 1)]
        for c in range(p.shape[1]):
            yield b, c, None if mask is None else mask[b, 0], axes


def _over_cross(x: Tensor, axes: Sequence[int], extreme: _Extreme) -> Tensor:
    """The extreme of each voxel and its neighbours along `axes`; voxels outside the image are left out."""
    out = x.clone()
    for axis in axes:
        last = x.shape[axis] - 1
        for to, source in ((0, 1), (1, 0)):
            part = out.narrow(axis, to, last)
            extreme(part, x.narrow(axis, source, last), out=part)
    return out


def _dilated(x: Tensor, axes: Sequence[int]) -> list[Tensor]:
    """The maximum over the box of `axes`, axis by axis: all that is computed on the way, the result last."""
    maps = [x]
    for axis in axes:
        maps.append(_over_cross(maps[-1], [axis], torch.maximum))
    return maps


def _through_skeleton(x: Tensor, axes: Sequence[Sequence[int]], gradient: Tensor) -> Tensor:
    """The gradient for `x` of a map whose gradient for K(x) is `gradient`."""
    eroded, skeletons = [x], [torch.zeros_like(x)]
    for of_step in axes:
        eroded.append(_over_cross(eroded[-1], of_step, torch.minimum))
        rest = torch.relu_(eroded[-2] - _dilated(eroded[-1], of_step)[-1])
        skeletons.append(skeletons[-1] + torch.relu_((1 - skeletons[-1]).mul_(rest)))
    skeletons.pop()
    of_eroded = torch.zeros_like(x)
    for of_step in reversed(axes):
        small, large, skeleton = eroded.pop(), eroded[-1], skeletons.pop()
        boxes = _dilated(small, of_step)
        rest = torch.relu_(large - boxes[-1])
        added = (1 - skeleton) * rest > 0
        of_rest = torch.where(added, gradient * (1 - skeleton), 0.0)
        gradient = torch.where(added, gradient * (1 - rest), gradient)
        of_box = of_rest.neg()
        for i in range(len(of_step) - 1, -1, -1):
            of_box = _routed(boxes[i], boxes[i + 1], [of_step[i]], of_box)
        of_eroded = _routed(large, small, of_step, of_eroded.add_(of_box)).add_(of_rest)
    return of_eroded


def _routed(x: Tensor, extreme: Tensor, axes: Sequence[int], gradient: Tensor) -> Tensor:
    """The gradient for `x` of its extremes over a cross: it goes to one voxel that has the extreme."""
    # By products with 0 and 1 in the gradient's type: selections of parts of a tensor are many times slower.
    room = torch.empty_like(x)
    out = torch.eq(x, extreme, out=room) * gradient
    left = gradient - out
    for axis in axes:
        last = x.shape[axis] - 1
        share = room.narrow(axis, 0, last)
        for at, source in ((0, 1), (1, 0)):
            here = left.narrow(axis, at, last)
            torch.eq(x.narrow(axis, source, last), extreme.narrow(axis, at, last), out=share).mul_(here)
            out.narrow(axis, source, last).add_(share)
            here.sub_(share)
    return out


@_sums.register_fake
def _(p: Tensor, y: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return p.new_empty((4, *p.shape[:2])), torch.empty_like(y)


@_sums_backward.register_fake
def _(gradients: Tensor, p: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(p)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], output[1])
    ctx.rest = inputs[4:]


def _gradient(ctx: Any, gradients: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    return _sums_backward(gradients.contiguous(), *ctx.saved_tensors, *ctx.rest), *(None,) * 5


def _no_second_derivative(ctx: Any, gradient: Tensor) -> Any:
    raise InputError("cldice: second derivatives are not there for this loss; expected one backward only")


_sums.register_autograd(_gradient, setup_context=_keep)
_sums_backward.register_autograd(_no_second_derivative)
