"""Soft erosions of squared errors, compiled: two maps and a bit per step and voxel, whatever the number of steps."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medloss.kernels.numba.compilation import EXACT, OPTIONS, compiled
from medloss.kernels.numba.vector_ops import add, at, fill, put, share_out

#: Planes per task of a thread.
_PLANES = 8


def eroded_sums(
    p: Tensor, y: Tensor, mask: Tensor | None, strides: list[int], weights: list[float], gradients: Tensor | None
) -> Tensor:
    """`erosion.eroded_sums`, `[B, C]`, without stretching; `gradients` as `p`."""
    # Not a tensor: inference mode is the calling thread's, and other threads must not write to its tensors.
    sums = np.empty(p.shape[:2], p.detach().numpy().dtype)
    classes, dims = p.shape[1], p.ndim - 2
    # A map's steps are short and wait for each other: threads share maps, and one map's planes if there are too few.
    apart = sums.size >= torch.get_num_threads()

    def work(begin: int, end: int) -> None:
        for number in range(begin, end):
            b, c = divmod(number, classes)
            item = (None if mask is None else mask[b, 0], strides[b * dims : (b + 1) * dims], weights)
            out = None if gradients is None else gradients[b, c]
            sums[b, c] = _eroded_sum(p[b, c], y[b, c], *item, out, _alone if apart else _over)

    if apart:
        share_out(sums.size, 1, work)
    else:
        work(0, sums.size)
    return torch.from_numpy(sums)


def _eroded_sum(
    p: Tensor,
    y: Tensor,
    mask: Tensor | None,
    strides: list[int],
    weights: list[float],
    gradients: Tensor | None,
    each: Callable[..., None],
) -> float:
    """The sum of one map `[*spatial]`; `each` calls a function for the planes of a box."""
    planes, rows, row = p.shape if p.ndim == 3 else (p.shape[0], 1, p.shape[1])
    strides = strides if p.ndim == 3 else [strides[0], len(weights) + 1, strides[1]]
    shape = (planes, rows, row)
    probability, label = p.detach().reshape(-1).numpy(), y.reshape(-1).numpy().view(np.uint8)
    counted = np.empty(0, np.uint8) if mask is None else mask.reshape(-1).numpy().view(np.uint8)
    # The gradient's memory serves as one of the two maps; a copy fixes which of them ends up in it.
    out = np.empty_like(probability) if gradients is None else gradients.view(-1).numpy()
    maps = [out, np.empty_like(probability)]
    bits = np.zeros((-(-len(weights) // 8) if gradients is not None else 0, probability.size), np.uint8)

    beyond_one = np.zeros(planes, np.int64)
    each((0, planes), _errors, probability, label, shape, maps[0], beyond_one)
    # Where no error is beyond 1, a voxel outside the box of the errors that are left has one neighbour in it at most,
    # whose third or less stays below a half: the box never grows.
    shrinks = not beyond_one.any()
    before = box = (0, planes, 0, rows)
    done: list[tuple[tuple[int, int, int, int], tuple[bool, bool, bool]]] = []
    value = 0.0
    for step, weight in enumerate(weights, start=1):
        axes = (step % strides[0] == 0, step % strides[1] == 0, step % strides[2] == 0)
        sums, first, last = np.zeros(planes), np.full(planes, rows), np.full(planes, -1)

        source, target = maps[(step - 1) % 2], maps[step % 2]
        each(box, _erode, source, target, shape, before, box, axes, step - 1, counted, bits, sums, first, last)
        value += weight * float(sums.sum())
        done.append((box, axes))
        left = np.flatnonzero(last >= 0)
        if len(left) == 0:
            break
        before = box
        if shrinks:
            box = (int(left[0]), int(left[-1]) + 1, int(first.min()), int(last.max()) + 1)
    if gradients is not None:
        _backward(probability, label, shape, counted, bits, maps, done, weights, out, each)
    return value


def _backward(
    p: npt.NDArray[Any],
    y: npt.NDArray[Any],
    shape: tuple[int, int, int],
    counted: npt.NDArray[Any],
    bits: npt.NDArray[Any],
    maps: list[npt.NDArray[Any]],
    done: list[tuple[tuple[int, int, int, int], tuple[bool, bool, bool]]],
    weights: list[float],
    out: npt.NDArray[Any],
    each: Callable[..., None],
) -> None:
    # The last is written to the map that is the gradient's.
    first_target = len(done) % 2
    after_box, after_axes = (0, 0, 0, 0), (False, False, False)
    for number, step in enumerate(range(len(done), 0, -1)):
        box, axes = done[step - 1]
        source, target = maps[(first_target + number + 1) % 2], maps[(first_target + number) % 2]
        scale = 2.0 / (2 * sum(axes) + 1)

        step_weights = (step - 1, scale, weights[step - 1])
        each(box, _gradients, source, target, shape, after_box, box, after_axes, *step_weights, counted, bits)
        after_box, after_axes = box, axes
    source = maps[(first_target + len(done) + 1) % 2]
    each((0, shape[0]), _error_gradients, source, out, shape, after_box, after_axes, p, y)


def _over(box: tuple[int, ...], function: Callable[..., None], *arguments: Any) -> None:
    """Call a function for all planes of a box."""
    share_out(box[1] - box[0], _PLANES, lambda b, e: function(*arguments, b + box[0], e + box[0]))


def _alone(box: tuple[int, ...], function: Callable[..., None], *arguments: Any) -> None:
    """The same in the calling thread."""
    function(*arguments, box[0], box[1])


@compiled
def _errors(p: Any, y: Any, shape: Any, out: Any, beyond_one: Any, begin: Any, end: Any) -> None:
    plane, real = shape[1] * shape[2], p.dtype.type
    for i in range(begin, end):
        base, beyond = at(i * plane), 0
        for k in range(at(plane)):
            error = (p[base + k] - real(y[base + k])) ** 2
            out[base + k] = error
            beyond += 0 if error <= 1 else 1
        beyond_one[i] = beyond


@numba.njit(**EXACT)
def _cross(x: Any, shape: Any, box: Any, axes: Any, i: Any, j: Any, out: Any) -> None:
    """A row of sums of voxels and their neighbours along some axes; x is 0 outside the box."""
    n, plane = at(shape[2]), shape[1] * shape[2]
    here = i * plane + j * shape[2]
    inside = box[0] <= i < box[1] and box[2] <= j < box[3]
    if inside:
        put(out, at(0), x, at(here), n)
    else:
        fill(out, at(0), out.dtype.type(0), n)
    if axes[0] and box[2] <= j < box[3]:
        if box[0] <= i + 1 < box[1]:
            add(out, at(0), x, at(here + plane), n)
        if box[0] <= i - 1 < box[1]:
            add(out, at(0), x, at(here - plane), n)
    if axes[1] and box[0] <= i < box[1]:
        if box[2] <= j + 1 < box[3]:
            add(out, at(0), x, at(here + shape[2]), n)
        if box[2] <= j - 1 < box[3]:
            add(out, at(0), x, at(here - shape[2]), n)
    if axes[2] and inside:
        add(out, at(0), x, at(here + 1), n - at(1))
        add(out, at(1), x, at(here), n - at(1))


@numba.njit(**OPTIONS)
def _row_sums(x: Any, a: Any, counted: Any, n: Any) -> Any:
    """The sum, and the sum of what counts."""
    whole = x.dtype.type(0)
    for k in range(n):
        whole += x[a + k]
    if len(counted) == 0:
        return whole, whole
    part = x.dtype.type(0)
    for k in range(n):
        part += x[a + k] if counted[a + k] else x.dtype.type(0)
    return whole, part


@compiled
def _erode(
    source: Any,
    target: Any,
    shape: Any,
    before: Any,
    box: Any,
    axes: Any,
    step: Any,
    counted: Any,
    bits: Any,
    sums: Any,
    first: Any,
    last: Any,
    begin: Any,
    end: Any,
) -> None:
    """A step: from what it left in `before` to `box`; a plane's sum, and its first and last row with an error."""
    n = at(shape[2])
    real = source.dtype.type
    total = np.empty(shape[2], source.dtype)
    size, half, two = real(2 * (axes[0] + axes[1] + axes[2]) + 1), real(0.5), real(2)
    bit, byte = np.uint8(1 << (step % 8)), step // 8
    for i in range(begin, end):
        for j in range(box[2], box[3]):
            _cross(source, shape, before, axes, i, j, total)
            base = at((i * shape[1] + j) * shape[2])
            for k in range(n):
                error = (total[k] / size - half) * two
                target[base + k] = real(0) if error <= 0 else error
            whole, part = _row_sums(target, base, counted, n)
            sums[i] += part
            if whole != 0:
                first[i] = min(first[i], j)
                last[i] = j
                if len(bits) > 0:
                    for k in range(n):
                        bits[byte, base + k] |= bit if target[base + k] > 0 else np.uint8(0)


@compiled
def _gradients(
    source: Any,
    target: Any,
    shape: Any,
    after: Any,
    box: Any,
    axes: Any,
    step: Any,
    scale: Any,
    weight: Any,
    counted: Any,
    bits: Any,
    begin: Any,
    end: Any,
) -> None:
    """A step back: the gradient for a step's sums of neighbours, from that of the next step, whose cross had `axes`."""
    n = at(shape[2])
    real = source.dtype.type
    total = np.empty(shape[2], source.dtype)
    factor, share = real(scale), real(weight)
    bit, byte = np.uint8(1 << (step % 8)), step // 8
    for i in range(begin, end):
        for j in range(box[2], box[3]):
            _cross(source, shape, after, axes, i, j, total)
            base = at((i * shape[1] + j) * shape[2])
            if len(counted) == 0:
                for k in range(n):
                    total[k] += share
            else:
                for k in range(n):
                    total[k] += share if counted[base + k] else real(0)
            for k in range(n):
                target[base + k] = total[k] * factor if bits[byte, base + k] & bit else real(0)


@compiled
def _error_gradients(
    source: Any, out: Any, shape: Any, after: Any, axes: Any, p: Any, y: Any, begin: Any, end: Any
) -> None:
    n = at(shape[2])
    real = source.dtype.type
    total = np.empty(shape[2], source.dtype)
    for i in range(begin, end):
        for j in range(shape[1]):
            _cross(source, shape, after, axes, i, j, total)
            base = at((i * shape[1] + j) * shape[2])
            for k in range(n):
                out[base + k] = real(2) * (p[base + k] - real(y[base + k])) * total[k]
