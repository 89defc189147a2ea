"""The structural error of `local_statistics`, compiled: plane by plane, with nothing larger than a plane in between.

Mean and variance under a window are computed axis by axis: after an axis, a voxel has the mean of its line, and
its variance is the mean of the line's variances plus the variance of the line's means. Both come from differences to
the voxel itself, so constants give exactly 0.
"""

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from medloss.kernels.numba.compilation import EXACT, compiled
from medloss.kernels.numba.vector_ops import at, fill, put, share_out

#: Voxels per task of a thread.
_VOXELS = 1 << 16
#: Voxels of the rows that are processed together: loops are long, and their buffers fit the first cache.
_STRIP = 768
#: Buffers of a strip; those that end in an underscore have the rows' ends repeated.
_OFFSET, _SQUARE, _SPREAD, _MEAN, _TOTAL, _SPREAD_, _MEAN_, _TOTAL_, _FIRST, _SECOND, _BUFFERS = range(11)


def structural_error(prediction: Tensor, target: Tensor, window: list[float], constant: float, average: bool) -> Tensor:
    """`local_statistics.structural_error`: `target` bool or in the type of `prediction`, float32 or float64."""
    items, classes = prediction.shape[:2]
    spatial = prediction.shape[2:]
    planes, rows, row = spatial if len(spatial) == 3 else (1, *spatial)
    out = torch.empty(items, 1 if average else classes, *spatial, dtype=prediction.dtype, device="cpu")
    (p, p_item), (y, y_item) = _flat(prediction), _flat(target)
    results = out.view(-1).numpy()
    weights = np.array(window, dtype=p.dtype)
    shape = (planes, rows, row, p_item, y_item)
    size = max(1, _VOXELS // (rows * row * classes))

    def work(begin: int, end: int) -> None:
        _error_planes(p, y, weights, p.dtype.type(constant), classes, average, shape, results, begin, end)

    share_out(items * planes, size, work)
    return out


def _flat(maps: Tensor) -> tuple[Any, int]:
    """All numbers in a row, and how many of them lead from an item to the next: channels may have been left out."""
    maps = maps.detach()
    if not maps[0].is_contiguous():
        maps = maps.contiguous()
    step = maps.stride(0) if len(maps) > 1 else 0
    numbers = maps.as_strided((step * (len(maps) - 1) + maps[0].numel(),), (1,))
    return (numbers.view(torch.uint8) if numbers.dtype == torch.bool else numbers).numpy(), step


@compiled
def _error_planes(
    p: Any,
    y: Any,
    window: Any,
    constant: Any,
    classes: Any,
    average: Any,
    shape: Any,
    out: Any,
    begin: Any,
    end: Any,
) -> None:
    planes, rows, row, p_item, y_item = shape
    plane = rows * row
    size = window.shape[0]
    half = size // 2
    wide = row + 2 * half
    labels = np.empty(size * plane, window.dtype)
    fields = np.empty((2, 3, plane + 2 * half * row), window.dtype)
    strip = min(rows, max(1, _STRIP // row))
    buffers = np.empty((_BUFFERS, strip * wide), window.dtype)
    first, second = buffers[_FIRST], buffers[_SECOND]
    at_p, at_y = np.empty(size, np.int64), np.empty(size, np.int64)
    levels = np.empty(rows, window.dtype)
    for number in range(begin, end):
        item, z = number // planes, number % planes
        for c in range(classes):
            flat, level = True, y[item * y_item + (c * planes + z) * plane]
            for k in range(size):
                near = min(max(z + k - half, 0), planes - 1)
                at_p[k] = item * p_item + (c * planes + near) * plane
                at_y[k] = k * plane
                flat = flat and _is_flat(y, at(item * y_item + (c * planes + near) * plane), plane, level)
            _across_planes(p, at_p, window, plane, row, fields[0])
            if flat:
                levels[:] = 0
            else:
                for k in range(size):
                    near = min(max(z + k - half, 0), planes - 1)
                    _lift(y, at(item * y_item + (c * planes + near) * plane), labels, at(at_y[k]), plane)
                _across_planes(labels, at_y, window, plane, row, fields[1])
                _levels(fields[1], half, row, levels)
            into = ((item if average else item * classes + c) * planes + z) * plane
            for begin_row in range(0, rows, strip):
                end_row = min(begin_row + strip, rows)
                _structure(fields[0], begin_row, end_row, row, window, constant, buffers, first)
                if _is_constant(levels, begin_row - half, end_row + half):
                    fill(second, at(0), 1, at(second.shape[0]))
                else:
                    _structure(fields[1], begin_row, end_row, row, window, constant, buffers, second)
                for r in range(begin_row, end_row):
                    start = at((r - begin_row) * wide)
                    _error_row(first, second, start, out, at(into + r * row), row, c > 0 and average)
        if average:
            share = out.dtype.type(1) / out.dtype.type(classes)
            _scale(out, at((item * planes + z) * plane), plane, share)


@numba.njit(**EXACT)
def _is_flat(y: Any, o: Any, n: Any, level: Any) -> Any:
    different = np.uint8(0)
    for i in range(at(n)):
        different |= np.uint8(y[o + i] != level)
    return different == 0


@numba.njit(**EXACT)
def _lift(y: Any, o: Any, out: Any, start: Any, n: Any) -> None:
    for i in range(at(n)):
        out[start + i] = y[o + i]


@numba.njit(**EXACT)
def _across_planes(x: Any, places: Any, window: Any, n: Any, row: Any, field: Any) -> None:
    """Mean, variance and mean less the voxel across planes: of a plane, its first and last row repeated."""
    half = window.shape[0] // 2
    mean, variance, offset = field[0], field[1], field[2]
    o, start = at(places[half]), at(half * row)
    if half == 1:
        _across_three(x, at(places[0]), o, at(places[2]), window[2], n, mean, variance, offset, start)
    else:
        fill(variance, at(0), 0, at(variance.shape[0]))
        fill(offset, at(0), 0, at(offset.shape[0]))
        for j in range(1, half + 1):
            a, b = at(places[half - j]), at(places[half + j])
            _spread(x, o, a, b, window[half + j], n, True, offset, variance, start)
        _less_square(variance, offset, n, start)
        _sum(x, o, offset, start, n, mean, start)
    for part in (mean, variance, offset):
        for r in range(half):
            put(part, at(r * row), part, start, at(row))
            put(part, start + at(n + r * row), part, start + at(n - row), at(row))


# The usual window, of three voxels: the same in one pass per axis.


@numba.njit(**EXACT)
def _across_three(
    x: Any, a: Any, o: Any, b: Any, weight: Any, n: Any, mean: Any, variance: Any, offset: Any, start: Any
) -> None:
    zero = mean.dtype.type(0)
    for i in range(at(n)):
        here = x[o + i]
        left, right = x[a + i] - here, x[b + i] - here
        off = weight * (left + right)
        square = weight * (left * left + right * right) - off * off
        variance[start + i] = zero if square < zero else square
        offset[start + i] = off
        mean[start + i] = here + off


@numba.njit(**EXACT)
def _across_three_rows(field: Any, o: Any, row: Any, window: Any, buffers: Any, start: Any) -> None:
    """Of a row, with its ends repeated: mean, variance and mean less the voxel across planes and rows."""
    mean, variance, offset = field[0], field[1], field[2]
    spread, middle, total = buffers[_SPREAD_], buffers[_MEAN_], buffers[_TOTAL_]
    zero, one, n = mean.dtype.type(0), at(1), at(row)
    inner, weight = window[1], window[2]
    for i in range(n):
        above, here, below = o + i, o + n + i, o + n + n + i
        value = mean[here]
        left, right = mean[above] - value, mean[below] - value
        off = weight * (left + right)
        square = weight * (left * left + right * right) - off * off
        near = inner * variance[here] + weight * (variance[above] + variance[below])
        spread[start + one + i] = near + (zero if square < zero else square)
        middle[start + one + i] = value + off
        total[start + one + i] = offset[here] + off
    for part in (spread, middle, total):
        part[start] = part[start + one]
        part[start + n + one] = part[start + n]


@numba.njit(**EXACT)
def _along_three(buffers: Any, n: Any, window: Any, constant: Any, out: Any) -> None:
    """The quotients, from what was found across planes and rows."""
    spread, middle, total = buffers[_SPREAD_], buffers[_MEAN_], buffers[_TOTAL_]
    zero, one, two = out.dtype.type(0), at(1), at(2)
    inner, weight = window[1], window[2]
    for i in range(n):
        value = middle[i + one]
        left, right = middle[i] - value, middle[i + two] - value
        off = weight * (left + right)
        square = weight * (left * left + right * right) - off * off
        variance = inner * spread[i + one] + weight * (spread[i] + spread[i + two])
        variance += zero if square < zero else square
        out[i] = (constant - total[i + one] - off) / (np.sqrt(variance) + constant)


@numba.njit(**EXACT)
def _levels(field: Any, half: Any, row: Any, levels: Any) -> None:
    """The value of each row that is constant, across the planes, too; else NaN. Most of a target's rows are."""
    mean, variance = field[0], field[1]
    for r in range(levels.shape[0]):
        o = at((half + r) * row)
        level = mean[o]
        different = np.int32(0)
        for i in range(at(row)):
            different += np.int32((mean[o + i] != level) | (variance[o + i] != 0))
        levels[r] = level if different == 0 else np.nan


@numba.njit(**EXACT)
def _is_constant(levels: Any, begin: Any, end: Any) -> Any:
    begin, end = max(begin, 0), min(end, levels.shape[0])
    level = levels[begin]
    different = 0
    for r in range(begin, end):
        different += levels[r] != level
    return different == 0


@numba.njit(**EXACT)
def _structure(field: Any, begin: Any, end: Any, row: Any, window: Any, constant: Any, buffers: Any, out: Any) -> None:
    """(x - m + C) / (s + C) of some rows, from what was found across planes; between rows, meaningless numbers."""
    half = window.shape[0] // 2
    mean, variance, offset = field[0], field[1], field[2]
    off, square, spread = buffers[_OFFSET], buffers[_SQUARE], buffers[_SPREAD]
    middle, total = buffers[_MEAN], buffers[_TOTAL]
    n, zero, inner = (end - begin) * row, at(0), at(half)
    if half == 1:
        for r in range(end - begin):
            _across_three_rows(field, at((begin + r) * row), row, window, buffers, at(r * (row + 2)))
        _along_three(buffers, at((end - begin) * (row + 2) - 2), window, constant, out)
        return
    # Across rows.
    o = at((half + begin) * row)
    if half == 0:
        fill(off, zero, 0, at(off.shape[0]))
        fill(square, zero, 0, at(off.shape[0]))
    _scaled(variance, o, window[half], n, spread)
    for j in range(1, half + 1):
        a, b = at((half + begin - j) * row), at((half + begin + j) * row)
        _spread(mean, o, a, b, window[half + j], n, j > 1, off, square, zero)
        _add_pair(variance, a, b, window[half + j], n, spread)
    _add_variance(square, off, n, spread)
    _sum(mean, o, off, zero, n, middle, zero)
    _sum(offset, o, off, zero, n, total, zero)
    # Along rows.
    wide = row + 2 * half
    for r in range(end - begin):
        _widen(spread, r * row, row, half, buffers[_SPREAD_], r * wide)
        _widen(middle, r * row, row, half, buffers[_MEAN_], r * wide)
        _widen(total, r * row, row, half, buffers[_TOTAL_], r * wide)
    n = (end - begin) * wide - 2 * half
    _scaled(buffers[_SPREAD_], inner, window[half], n, out)
    for j in range(1, half + 1):
        a, b = at(half - j), at(half + j)
        _spread(buffers[_MEAN_], inner, a, b, window[half + j], n, j > 1, off, square, zero)
        _add_pair(buffers[_SPREAD_], a, b, window[half + j], n, out)
    _quotient(square, buffers[_TOTAL_], inner, off, constant, n, out)


@numba.njit(**EXACT)
def _widen(x: Any, o: Any, n: Any, half: Any, out: Any, start: Any) -> None:
    """A row with its ends repeated."""
    source, target = at(o), at(start + half)
    for i in range(at(n)):
        out[target + i] = x[source + i]
    for k in range(half):
        out[start + k], out[start + half + n + k] = x[o], x[o + n - 1]


@numba.njit(**EXACT)
def _spread(
    x: Any, o: Any, a: Any, b: Any, weight: Any, n: Any, more: Any, offset: Any, square: Any, start: Any
) -> None:
    """Weighted sums of two neighbours' differences to each voxel, and of their squares."""
    if more:
        for i in range(at(n)):
            left, right = x[a + i] - x[o + i], x[b + i] - x[o + i]
            offset[start + i] += weight * (left + right)
            square[start + i] += weight * (left * left + right * right)
    else:
        for i in range(at(n)):
            left, right = x[a + i] - x[o + i], x[b + i] - x[o + i]
            offset[start + i] = weight * (left + right)
            square[start + i] = weight * (left * left + right * right)


@numba.njit(**EXACT)
def _less_square(square: Any, offset: Any, n: Any, start: Any) -> None:
    """The variance: the voxel itself is in the mean, so little is lost in the difference. NaN stays."""
    zero = square.dtype.type(0)
    for i in range(at(n)):
        value = square[start + i] - offset[start + i] * offset[start + i]
        square[start + i] = zero if value < zero else value


@numba.njit(**EXACT)
def _add_variance(square: Any, offset: Any, n: Any, out: Any) -> None:
    zero = out.dtype.type(0)
    for i in range(at(n)):
        value = square[i] - offset[i] * offset[i]
        out[i] += zero if value < zero else value


@numba.njit(**EXACT)
def _sum(x: Any, o: Any, y: Any, a: Any, n: Any, out: Any, start: Any) -> None:
    for i in range(at(n)):
        out[start + i] = x[o + i] + y[a + i]


@numba.njit(**EXACT)
def _scaled(x: Any, o: Any, weight: Any, n: Any, out: Any) -> None:
    for i in range(at(n)):
        out[i] = weight * x[o + i]


@numba.njit(**EXACT)
def _add_pair(x: Any, a: Any, b: Any, weight: Any, n: Any, out: Any) -> None:
    for i in range(at(n)):
        out[i] += weight * (x[a + i] + x[b + i])


@numba.njit(**EXACT)
def _quotient(square: Any, total: Any, o: Any, offset: Any, constant: Any, n: Any, out: Any) -> None:
    zero = out.dtype.type(0)
    for i in range(at(n)):
        value = square[i] - offset[i] * offset[i]
        variance = out[i] + (zero if value < zero else value)
        out[i] = (constant - total[o + i] - offset[i]) / (np.sqrt(variance) + constant)


@numba.njit(**EXACT)
def _error_row(x: Any, y: Any, a: Any, out: Any, o: Any, n: Any, more: Any) -> None:
    if more:
        for i in range(at(n)):
            out[o + i] += abs(y[a + i] - x[a + i])
    else:
        for i in range(at(n)):
            out[o + i] = abs(y[a + i] - x[a + i])


@numba.njit(**EXACT)
def _scale(out: Any, o: Any, n: Any, share: Any) -> None:
    for i in range(at(n)):
        out[o + i] *= share
