"""Sums over the segments of a single channel with a hard target: a block's rows run by run.

A run is of one cell, that is of one segment and one side of the target, y = 1 or y = 0. t: the probability of what is
there, p where y = 1, else 1 - p.
"""

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from medloss.kernels.numba import entropy as entropies
from medloss.kernels.numba import terms as formulas
from medloss.kernels.numba.blocks import load_row
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
    ROW_L,
    ROW_O,
    ROW_P,
    ROW_Q,
    ROW_U,
    ROW_V,
    ROW_Y,
    SQUARES,
    WEIGHTS,
)
from medloss.kernels.numba.sums import Array, Work, flat_numbers, log_floor
from medloss.kernels.sum_spec import ROWS, Row, VoxelTerms, sum_type

#: What is summed in a cell: how many voxels there are, v, v p, v p^2, v (1 - t)^2 and v h.
_COUNT, _WEIGHT, _PREDICTION, _SQUARE, _ERROR, _ENTROPY = range(6)


def sums_by_segment(
    terms: VoxelTerms, logits: Tensor, target: Tensor, segment: Tensor, count: int, voxel_weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The rows of each segment, `[S, ROWS]`, and its number of voxels, `[S]`."""
    work, segments = _work(terms, logits, target, segment, voxel_weight), segment.numpy()
    partial = np.zeros((work.chunks, 2 * count + 1, 6))

    def run(item: int, chunk: int, begin: int, end: int, buffers: tuple[Array, ...]) -> None:
        _sums_pass(*work.inputs, segments, begin, end, *buffers, partial[chunk])

    work.run(run)
    # Added in order, whichever thread computed them: the result does not depend on the number of threads.
    outside, inside = partial.sum(0)[:-1].reshape(count, 2, 6).transpose(1, 2, 0)
    weight = _COUNT if voxel_weight is None else _WEIGHT
    sums = np.zeros((count, ROWS))
    sums[:, Row.TARGET] = inside[_COUNT]
    if terms.overlap:
        sums[:, Row.TP] = inside[_PREDICTION]
        sums[:, Row.PREDICTION] = inside[_PREDICTION] + outside[_PREDICTION]
        if voxel_weight is not None:
            sums[:, Row.WEIGHTED_TARGET] = inside[_WEIGHT]
    if terms.squares:
        sums[:, Row.SQUARED_PREDICTION] = inside[_SQUARE] + outside[_SQUARE]
        sums[:, Row.SQUARED_TARGET] = inside[weight]
    sums[:, Row.ERROR_INSIDE], sums[:, Row.ERROR_OUTSIDE] = inside[_ERROR], outside[_ERROR]
    sums[:, Row.POSITIVE], sums[:, Row.NEGATIVE] = inside[_ENTROPY], outside[_ENTROPY]
    dtype = sum_type(logits)
    return torch.from_numpy(sums).to(dtype), torch.from_numpy(inside[_COUNT] + outside[_COUNT]).to(dtype)


def gradient_by_segment(
    terms: VoxelTerms, logits: Tensor, target: Tensor, segment: Tensor, voxel_weight: Tensor | None, rows: Tensor
) -> Tensor:
    """The gradient of `(rows * sums).sum()`, `[N]`."""
    work, segments = _work(terms, logits, target, segment, voxel_weight), segment.numpy()
    gradient = torch.empty_like(logits)
    out, floor = flat_numbers(gradient), log_floor(work.real)
    by_row = rows.detach().numpy().T
    # The factors of p, p^2, (1 - t)^2 and h in a cell; the last two come by t, which falls with p where y = 0.
    factors = np.zeros((2 * len(rows) + 1, 4), work.real)
    outside, inside = factors[:-1].reshape(-1, 2, 4).transpose(1, 2, 0)
    outside[0], inside[0] = by_row[Row.PREDICTION], by_row[Row.PREDICTION] + by_row[Row.TP]
    outside[1] = inside[1] = 2 * by_row[Row.SQUARED_PREDICTION]
    outside[2], inside[2] = 2 * by_row[Row.ERROR_OUTSIDE], -2 * by_row[Row.ERROR_INSIDE]
    outside[3], inside[3] = -by_row[Row.NEGATIVE], by_row[Row.POSITIVE]

    def run(item: int, chunk: int, begin: int, end: int, buffers: tuple[Array, ...]) -> None:
        _gradient_pass(*work.inputs, segments, begin, end, *buffers, factors, floor, out)

    work.run(run)
    return gradient


def _work(terms: VoxelTerms, logits: Tensor, target: Tensor, segment: Tensor, voxel_weight: Tensor | None) -> Work:
    weight = None if voxel_weight is None else voxel_weight[None, None]
    return Work.of(terms, logits[None, None], target[None, None], None, weight)


@numba.njit(**OPTIONS)
def _find_cells(segments: Any, y: Any, n: Any, none: Any, cells: Any) -> None:
    """The cell of each voxel; `none` stands for a voxel of no segment."""
    other = np.int32(none)
    for i in range(n):
        cells[i] = np.int32(np.int32(segments[i] << 1) + np.int32(y[i])) if segments[i] >= 0 else other


@numba.njit(**OPTIONS)
def _toward_target(z: Any, y: Any, cells: Any, n: Any, none: Any, flip: Any, out: Any) -> None:
    """The logits, with the other sign where y = 0 (`flip`); 0 where a voxel is of no segment."""
    zero, other = out.dtype.type(0), np.int32(none)
    if flip:
        for i in range(n):
            value = z[i] if y[i] else -z[i]
            out[i] = value if cells[i] != other else zero
    else:
        for i in range(n):
            out[i] = z[i] if cells[i] != other else zero


@numba.njit(**OPTIONS)
def _swap_outside(y: Any, n: Any, left: Any, right: Any) -> None:
    for i in range(n):
        kept, other = left[i], right[i]
        left[i] = kept if y[i] else other
        right[i] = other if y[i] else kept


@numba.njit(**OPTIONS)
def _choose(y: Any, n: Any, inside: Any, out: Any) -> None:
    """`inside` where y = 1."""
    for i in range(n):
        out[i] = inside[i] if y[i] else out[i]


@numba.njit(**OPTIONS)
def _prepare(
    logits: Any, target: Any, weight: Any, plan: Any, segments: Any, start: Any, n: Any, none: Any,
    logarithms: Any, wide: Any, narrow: Any, cells: Any,
) -> None:  # fmt: skip
    """A block's cells, v, t, 1 - t, their logarithms, and p."""
    y, z = target[start : start + n], logits[start : start + n]
    t, u, v, p = narrow[ROW_P], narrow[ROW_U], narrow[ROW_V], narrow[ROW_Y]
    given = plan[MODE] == GIVEN
    _find_cells(segments[start : start + n], y, n, none, cells)
    _toward_target(z, y, cells, n, none, not given, wide[0])
    if given:
        formulas.given_class(wide[0], n, logarithms, t, u, narrow[ROW_L], narrow[ROW_Q])
        _swap_outside(y, n, t, u)
        if logarithms:
            _swap_outside(y, n, narrow[ROW_L], narrow[ROW_Q])
    else:
        formulas.sigmoid_class(wide[0], n, logarithms, t, u, narrow[ROW_L], narrow[ROW_Q])
    if plan[OVERLAP] or plan[SQUARES]:
        for i in range(n):
            p[i] = t[i] if y[i] else u[i]
    if plan[WEIGHTS]:
        _toward_target(weight[start : start + n], y, cells, n, none, False, v)


@numba.njit(**OPTIONS)
def _find_runs(cells: Any, n: Any, ends: Any) -> Any:
    """Where the runs of a cell end; returns how many there are."""
    count = np.uint64(0)
    for i in range(1, n):
        ends[count] = i
        count += np.uint64(cells[i] != cells[i - 1])
    ends[count] = n
    return np.int64(count) + 1


@numba.njit(**OPTIONS)
def _add(values: Any, v: Any, n: Any, weighted: Any, cells: Any, ends: Any, runs: Any, column: Any, sums: Any) -> None:
    """Add up values times v, run by run."""
    zero = values.dtype.type(0)
    if weighted:
        for i in range(n):
            values[i] = entropies.counted(v[i], values[i], zero)
    begin = np.uint64(0)
    for k in range(runs):
        end = np.uint64(ends[k])
        cell = np.uint64(cells[begin])
        first, second, third, fourth = zero, zero, zero, zero
        while begin + np.uint64(3) < end:
            first += values[begin]
            second += values[begin + np.uint64(1)]
            third += values[begin + np.uint64(2)]
            fourth += values[begin + np.uint64(3)]
            begin += np.uint64(4)
        while begin < end:
            first += values[begin]
            begin += np.uint64(1)
        sums[cell, column] += (first + second) + (third + fourth)


@numba.njit(**OPTIONS)
def _entropy(plan: Any, gamma: Any, y: Any, narrow: Any, n: Any, h: Any, spare: Any) -> None:
    """`h` of what is there."""
    kind, logs, u = plan[ENTROPY], narrow[ROW_L], narrow[ROW_U]
    entropies.entropy_values(entropies.kind_of(kind, True), gamma, logs, u, n, h)
    if kind == entropies.FOCAL_BACKGROUND:
        entropies.entropy_values(entropies.PLAIN, gamma, logs, u, n, spare)
        _choose(y, n, spare, h)


@compiled
def _sums_pass(
    logits: Any, target: Any, mask: Any, weight: Any, plan: Any, gamma: Any, segments: Any,
    begin: Any, end: Any, wide: Any, narrow: Any, cells: Any, sums: Any,
) -> None:  # fmt: skip
    """Add the sums of the voxels `begin` to `end` to `sums`, `[2 S + 1, 6]`."""
    none, ends = sums.shape[0] - 1, np.empty(plan[BLOCK], np.int32)
    p, v, u, g, h = narrow[ROW_Y], narrow[ROW_V], narrow[ROW_U], narrow[ROW_G], narrow[ROW_H]
    weighted = plan[WEIGHTS] != 0
    for start in range(begin, end, plan[BLOCK]):
        n = min(plan[BLOCK], end - start)
        _prepare(
            logits, target, weight, plan, segments, start, n, none, plan[ENTROPY] != 0, wide, narrow, cells
        )  # fmt: skip
        runs = _find_runs(cells, n, ends)
        last = 0
        for k in range(runs):
            sums[np.uint64(cells[last]), _COUNT] += ends[k] - last
            last = ends[k]
        if weighted:
            formulas.fill(g, n, 1)
            _add(g, v, n, weighted, cells, ends, runs, _WEIGHT, sums)
        if plan[SQUARES]:
            formulas.multiply(p, p, n, g)
            _add(g, v, n, weighted, cells, ends, runs, _SQUARE, sums)
        if plan[ERRORS]:
            formulas.multiply(u, u, n, g)
            _add(g, v, n, weighted, cells, ends, runs, _ERROR, sums)
        if plan[OVERLAP]:
            _add(p, v, n, weighted, cells, ends, runs, _PREDICTION, sums)
        if plan[ENTROPY]:
            _entropy(plan, gamma, target[start : start + n], narrow, n, h, g)
            _add(h, v, n, weighted, cells, ends, runs, _ENTROPY, sums)


@numba.njit(**OPTIONS)
def _gather(factors: Any, column: Any, cells: Any, n: Any, out: Any) -> None:
    """The factor of each voxel's cell."""
    for i in range(n):
        out[i] = factors[np.uint64(cells[i]), column]


@numba.njit(**OPTIONS)
def _add_product(left: Any, right: Any, n: Any, out: Any) -> None:
    for i in range(n):
        out[i] += left[i] * right[i]


@numba.njit(**OPTIONS)
def _entropy_gradient(kind: Any, plan: Any, gamma: Any, narrow: Any, floor: Any, n: Any, h: Any) -> None:
    """The derivative of `h`, by the logit or t."""
    t, u, logs = narrow[ROW_P], narrow[ROW_U], narrow[ROW_L]
    if plan[MODE] == GIVEN:
        entropies.given_gradients(kind, gamma, logs, narrow[ROW_Q], t, u, floor, n, h)
    else:
        entropies.entropy_gradients(kind, gamma, logs, t, u, n, h)
        formulas.scale(u, n, h)


@compiled
def _gradient_pass(
    logits: Any, target: Any, mask: Any, weight: Any, plan: Any, gamma: Any, segments: Any,
    begin: Any, end: Any, wide: Any, narrow: Any, cells: Any, factors: Any, floor: Any, gradient: Any,
) -> None:  # fmt: skip
    """Write the gradient at the voxels `begin` to `end`; `factors` is `[2 S + 1, 4]`."""
    none, kind = factors.shape[0] - 1, plan[ENTROPY]
    logarithms = (kind != 0) & ((kind != entropies.PLAIN) | (plan[MODE] == GIVEN))
    p, v, t, u, g, h = narrow[ROW_Y], narrow[ROW_V], narrow[ROW_P], narrow[ROW_U], narrow[ROW_G], narrow[ROW_H]
    factor = narrow[ROW_O]
    for start in range(begin, end, plan[BLOCK]):
        n = min(plan[BLOCK], end - start)
        _prepare(logits, target, weight, plan, segments, start, n, none, logarithms, wide, narrow, cells)
        if plan[OVERLAP]:
            _gather(factors, 0, cells, n, g)
        else:
            formulas.fill(g, n, 0)
        if plan[SQUARES]:
            _gather(factors, 1, cells, n, factor)
            _add_product(factor, p, n, g)
        if plan[ERRORS]:
            _gather(factors, 2, cells, n, factor)
            _add_product(factor, u, n, g)
        if plan[MODE] != GIVEN:
            formulas.scale(t, n, g)
            formulas.scale(u, n, g)
        if kind:
            _gather(factors, 3, cells, n, factor)
            _entropy_gradient(entropies.kind_of(kind, True), plan, gamma, narrow, floor, n, h)
            if kind == entropies.FOCAL_BACKGROUND:
                _entropy_gradient(entropies.PLAIN, plan, gamma, narrow, floor, n, wide[1])
                _choose(target[start : start + n], n, wide[1], h)
            _add_product(factor, h, n, g)
        if plan[WEIGHTS]:
            for i in range(n):
                g[i] = entropies.counted(v[i], g[i], g.dtype.type(0))
        load_row(g[:n], gradient[start : start + n])
