"""Sums over the segments of a single channel: a block's rows run by run, where a run is of one segment."""

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from medloss.kernels.numba import entropy as entropies
from medloss.kernels.numba import terms as formulas
from medloss.kernels.numba.blocks import keep_only
from medloss.kernels.numba.compilation import OPTIONS, compiled
from medloss.kernels.numba.passes import (
    BLOCK,
    ENTROPY,
    ERRORS,
    GIVEN,
    MODE,
    OVERLAP,
    ROW_G,
    ROW_H,
    ROW_INVERSE,
    ROW_L,
    ROW_P,
    ROW_Q,
    ROW_TOP,
    ROW_U,
    ROW_V,
    ROW_Y,
    SQUARES,
    WEIGHTS,
    class_probability,
    load_logits,
    load_target,
    load_voxel_weight,
)
from medloss.kernels.numba.sums import Array, Work, flat_numbers, log_floor
from medloss.kernels.sum_spec import ROWS, VoxelTerms, sum_type


def sums_by_segment(
    terms: VoxelTerms, logits: Tensor, target: Tensor, segment: Tensor, count: int, voxel_weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The rows of each segment, `[S, ROWS]`, and its number of voxels, `[S]`."""
    work, segments = _work(terms, logits, target, segment, voxel_weight), segment.numpy()
    partial = np.zeros((work.chunks, count, ROWS + 1))

    def run(item: int, chunk: int, begin: int, end: int, buffers: tuple[Array, ...]) -> None:
        _sums_pass(*work.inputs, segments, begin, end, *buffers[:2], partial[chunk])

    work.run(run)
    # Added in order, whichever thread computed them: the result does not depend on the number of threads.
    sums = torch.from_numpy(partial.sum(0)).to(sum_type(logits))
    return sums[:, :ROWS].contiguous(), sums[:, ROWS].contiguous()


def gradient_by_segment(
    terms: VoxelTerms, logits: Tensor, target: Tensor, segment: Tensor, voxel_weight: Tensor | None, rows: Tensor
) -> Tensor:
    """The gradient of `(rows * sums).sum()`, `[N]`."""
    work, segments = _work(terms, logits, target, segment, voxel_weight), segment.numpy()
    gradient = torch.empty_like(logits)
    out, rows_by_segment, floor = flat_numbers(gradient), rows.detach().numpy(), log_floor(work.real)

    def run(item: int, chunk: int, begin: int, end: int, buffers: tuple[Array, ...]) -> None:
        _gradient_pass(*work.inputs, segments, begin, end, *buffers[:2], rows_by_segment, floor, out)

    work.run(run)
    return gradient


def _work(terms: VoxelTerms, logits: Tensor, target: Tensor, segment: Tensor, voxel_weight: Tensor | None) -> Work:
    weight = None if voxel_weight is None else voxel_weight[None, None]
    return Work.of(terms, logits[None, None], target[None, None], None, weight)


@numba.njit(**OPTIONS)
def _prepare(
    logits: Any,
    target: Any,
    weight: Any,
    plan: Any,
    start: Any,
    n: Any,
    segments: Any,
    keep: Any,
    wide: Any,
    narrow: Any,
) -> None:
    """A block's y, v, p, 1 - p and the logarithms, 0 where a voxel is of no segment."""
    for i in range(n):
        keep[i] = segments[i] >= 0
    keep = keep[:n]
    load_logits(logits, plan, 0, start, n, wide)
    load_target(target, plan, 0, 0, start, n, keep, np.empty(0, np.int32), narrow[ROW_Y])
    load_voxel_weight(weight, plan, 0, 0, start, n, keep, narrow[ROW_V])
    class_probability(wide[0], plan, n, keep, plan[ENTROPY] != 0, narrow)


@numba.njit(**OPTIONS)
def _add(values: Any, segments: Any, n: Any, row: Any, sums: Any) -> None:
    """Add up a row's values, run by run of a segment."""
    i = 0
    while i < n:
        segment, total = segments[i], values.dtype.type(0)
        while i < n and segments[i] == segment:
            total += values[i]
            i += 1
        if segment >= 0:
            sums[segment, row] += total


@numba.njit(**OPTIONS)
def _gather(rows: Any, row: Any, segments: Any, n: Any, out: Any) -> None:
    """What stands in a row for each voxel's segment."""
    zero = out.dtype.type(0)
    for i in range(n):
        out[i] = rows[np.uint64(segments[i]), row] if segments[i] >= 0 else zero


@numba.njit(**OPTIONS)
def _square(x: Any, v: Any, n: Any, out: Any) -> None:
    for i in range(n):
        out[i] = v[i] * x[i] * x[i]


@numba.njit(**OPTIONS)
def _error(y: Any, p: Any, v: Any, n: Any, inside: Any, outside: Any) -> None:
    one = y.dtype.type(1)
    for i in range(n):
        square = v[i] * (y[i] - p[i]) * (y[i] - p[i])
        inside[i] = square * y[i]
        outside[i] = square * (one - y[i])


@numba.njit(**OPTIONS)
def _entropy(y: Any, v: Any, n: Any, negative: Any, h: Any) -> None:
    """`v y h`, or `v (1 - y) h`."""
    one, zero = y.dtype.type(1), y.dtype.type(0)
    if negative:
        for i in range(n):
            h[i] = entropies.counted(v[i] * (one - y[i]), h[i], zero)
    else:
        for i in range(n):
            h[i] = entropies.counted(v[i] * y[i], h[i], zero)


@compiled
def _sums_pass(
    logits: Any, target: Any, mask: Any, weight: Any, plan: Any, gamma: Any, segments: Any,
    begin: Any, end: Any, wide: Any, narrow: Any, sums: Any,
) -> None:  # fmt: skip
    """Add the sums of the voxels `begin` to `end` to `sums`, `[S, ROWS + 1]`."""
    keep = np.empty(plan[BLOCK], np.uint8)
    y, v, p, u, g, h = narrow[ROW_Y], narrow[ROW_V], narrow[ROW_P], narrow[ROW_U], narrow[ROW_G], narrow[ROW_H]
    kind = plan[ENTROPY]
    for start in range(begin, end, plan[BLOCK]):
        n = min(plan[BLOCK], end - start)
        s = segments[start : start + n]
        _prepare(logits, target, weight, plan, start, n, s, keep, wide, narrow)
        formulas.fill(h, n, 1)
        _add(h, s, n, 10, sums)
        _add(y, s, n, 2, sums)
        if plan[OVERLAP]:
            formulas.multiply(v, p, n, g)
            formulas.multiply(g, y, n, h)
            _add(h, s, n, 0, sums)
            _add(g, s, n, 1, sums)
            if plan[WEIGHTS]:
                formulas.multiply(v, y, n, h)
                _add(h, s, n, 9, sums)
        if plan[SQUARES]:
            _square(p, v, n, h)
            _add(h, s, n, 3, sums)
            _square(y, v, n, h)
            _add(h, s, n, 4, sums)
        if plan[ERRORS]:
            _error(y, p, v, n, g, h)
            _add(g, s, n, 5, sums)
            _add(h, s, n, 6, sums)
        if kind:
            entropies.entropy_values(entropies.kind_of(kind, False), gamma, narrow[ROW_L], u, n, h)
            _entropy(y, v, n, False, h)
            _add(h, s, n, 7, sums)
            entropies.entropy_values(entropies.kind_of(kind, True), gamma, narrow[ROW_Q], p, n, h)
            _entropy(y, v, n, True, h)
            _add(h, s, n, 8, sums)


@numba.njit(**OPTIONS)
def _add_overlap(on_tp: Any, on_prediction: Any, y: Any, v: Any, n: Any, out: Any) -> None:
    for i in range(n):
        out[i] += v[i] * (on_tp[i] * y[i] + on_prediction[i])


@numba.njit(**OPTIONS)
def _add_square(on_square: Any, p: Any, v: Any, n: Any, out: Any) -> None:
    two = out.dtype.type(2)
    for i in range(n):
        out[i] += two * on_square[i] * v[i] * p[i]


@numba.njit(**OPTIONS)
def _add_error(inside: Any, outside: Any, y: Any, p: Any, v: Any, n: Any, out: Any) -> None:
    one, two = out.dtype.type(1), out.dtype.type(2)
    for i in range(n):
        out[i] += two * (p[i] - y[i]) * v[i] * (inside[i] * y[i] + outside[i] * (one - y[i]))


@numba.njit(**OPTIONS)
def _add_product(left: Any, right: Any, n: Any, out: Any) -> None:
    for i in range(n):
        out[i] += left[i] * right[i]


@numba.njit(**OPTIONS)
def _entropy_gradient(plan: Any, gamma: Any, narrow: Any, negative: Any, floor: Any, n: Any, out: Any) -> None:
    """The gradient of `v y h`, or of `v (1 - y) h`, for the logit (or probability)."""
    y, v, p, u, h = narrow[ROW_Y], narrow[ROW_V], narrow[ROW_P], narrow[ROW_U], narrow[ROW_H]
    logs, other_logs = narrow[ROW_L], narrow[ROW_Q]
    one, zero = y.dtype.type(1), y.dtype.type(0)
    kind = entropies.kind_of(plan[ENTROPY], negative)
    formulas.fill(out, n, 0)
    if plan[MODE] != GIVEN:
        inside, outside = (zero, one) if negative else (one, zero)
        entropies.add_sigmoid_gradients(kind, gamma, inside, outside, y, v, p, u, logs, other_logs, n, h, out)
    elif negative:
        entropies.given_gradients(kind, gamma, other_logs, logs, u, p, floor, n, h)
        entropies.add_entropy(-one, y, v, h, n, True, out)
    else:
        entropies.given_gradients(kind, gamma, logs, other_logs, p, u, floor, n, h)
        entropies.add_entropy(one, y, v, h, n, False, out)


@compiled
def _gradient_pass(
    logits: Any, target: Any, mask: Any, weight: Any, plan: Any, gamma: Any, segments: Any,
    begin: Any, end: Any, wide: Any, narrow: Any, rows: Any, floor: Any, gradient: Any,
) -> None:  # fmt: skip
    """Write the gradient at the voxels `begin` to `end`; `rows` is `[S, ROWS]`."""
    keep = np.empty(plan[BLOCK], np.uint8)
    y, v, p, g = narrow[ROW_Y], narrow[ROW_V], narrow[ROW_P], narrow[ROW_G]
    first, second = narrow[ROW_TOP], narrow[ROW_INVERSE]
    for start in range(begin, end, plan[BLOCK]):
        n = min(plan[BLOCK], end - start)
        s = segments[start : start + n]
        _prepare(logits, target, weight, plan, start, n, s, keep, wide, narrow)
        formulas.fill(g, n, 0)
        if plan[OVERLAP]:
            _gather(rows, 0, s, n, first)
            _gather(rows, 1, s, n, second)
            _add_overlap(first, second, y, v, n, g)
        if plan[SQUARES]:
            _gather(rows, 3, s, n, first)
            _add_square(first, p, v, n, g)
        if plan[ERRORS]:
            _gather(rows, 5, s, n, first)
            _gather(rows, 6, s, n, second)
            _add_error(first, second, y, p, v, n, g)
        if plan[MODE] != GIVEN:
            formulas.multiply(g, p, n, g)
            formulas.multiply(g, narrow[ROW_U], n, g)
        if plan[ENTROPY]:
            for negative in (False, True):
                _gather(rows, 8 if negative else 7, s, n, first)
                _entropy_gradient(plan, gamma, narrow, negative, floor, n, second)
                _add_product(first, second, n, g)
        keep_only(keep[:n], g)
        gradient[start : start + n] = g[:n]
