"""Errors that lie deep on the wrong side, by sums over balls, compiled: no map per radius, no Fourier transform.

A ball is a pile of discs across the last axis (`medloss.boundary.balls.Discs`). For a strip of rows the discs grow
point by point, and each that a ball needs is added to it, shifted along the row.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medloss.boundary.balls import Discs, discs
from medloss.kernels.numba.ball_gradients import STRIP, spread_gradients
from medloss.kernels.numba.compilation import EXACT, compiled
from medloss.kernels.numba.vector_ops import (
    add,
    add_four_pairs,
    add_pair,
    add_two_pairs,
    at,
    fill,
    put,
    put_pair,
    row_sum,
    share_out,
)

Array: TypeAlias = npt.NDArray[Any]

#: Planes per task of a thread.
_PLANES = 8
#: Points of the largest disc's quarter beyond which Fourier transforms are faster.
_MANY_POINTS = 1200


def supports(radii: Sequence[float], spacing: Sequence[float]) -> bool:
    """Whether these kernels are faster than Fourier transforms."""
    return len(discs(tuple(radii), _three(spacing)).points) <= _MANY_POINTS


def deep_errors(
    p: Tensor,
    y: Tensor,
    radii: Sequence[float],
    weights: Sequence[float],
    spacing: Sequence[float],
    gradients: Tensor | None,
) -> Tensor:
    """`ball_means.deep_errors`, `[B, C]`; the gradients go to a tensor as `p`."""
    # Not a tensor: inference mode is the calling thread's, and other threads must not write to its tensors.
    sums = np.empty(p.shape[:2], p.detach().numpy().dtype)
    classes, maps = p.shape[1], p.shape[0] * p.shape[1]
    # Parts of rows cost more than rows: one map is shared between threads only where there are too few.
    threads = 1 if maps >= torch.get_num_threads() else torch.get_num_threads()

    def work(begin: int, end: int) -> None:
        for number in range(begin, end):
            b, c = divmod(number, classes)
            out = None if gradients is None else gradients[b, c]
            sums[b, c] = _of_one_map(p[b, c], y[b, c], radii, weights, spacing, out, threads)

    if threads == 1:
        share_out(maps, 1, work)
    else:
        work(0, maps)
    return torch.from_numpy(sums)


def _of_one_map(
    p: Tensor,
    y: Tensor,
    radii: Sequence[float],
    weights: Sequence[float],
    spacing: Sequence[float],
    gradients: Tensor | None,
    threads: int,
) -> float:
    plan = discs(tuple(radii), _three(spacing))
    shape = (p.shape[0], 1, p.shape[1]) if p.ndim == 2 else tuple(p.shape)
    plane = shape[1] * shape[2]
    probability, label = p.detach().reshape(-1).numpy(), y.reshape(-1).numpy().view(np.uint8)
    real = probability.dtype.type
    # A label's voxels in a ball are counted in the smallest integers that hold them.
    count = np.uint16 if int(plan.sizes.max()) < 1 << 16 else np.uint32
    out = np.empty(0, real) if gradients is None else gradients.view(-1).numpy()
    sides = np.zeros((0 if gradients is None else -(-len(radii) // 8), 2, probability.size), np.uint8)
    sums = np.zeros(shape[0])
    cut = _cut(plan)
    high = np.empty(shape[0] * shape[1], np.uint8)
    _high_rows(probability, shape[2], high)
    sizes, by_radius = plan.sizes.numpy().astype(real), np.array(weights, real)

    def forward(begin: int, end: int) -> None:
        buffers = (_Buffers(plan, shape, np.uint8, count), _Buffers(plan, shape, real, real))
        by_label = np.empty((2, plane), real)
        _values(
            probability, label, high, shape, cut, plan.reach, begin, end, buffers[0].arrays, buffers[1].arrays,
            by_label, sizes, by_radius, sums, sides, out,
        )  # fmt: skip

    share_out(shape[0], _PLANES, forward)
    if gradients is not None:
        # Lanes are independent of each other, everything else overlaps.
        share_out(
            shape[2],
            -(-shape[2] // threads),
            lambda b, e: spread_gradients(
                probability, label, shape, cut, plan.reach, b, e, sizes, by_radius, sides, out
            ),
        )
    return float(sums.sum())


def _three(spacing: Sequence[float]) -> tuple[float, float, float]:
    # A 2D image is a volume of rows of one voxel: nothing reaches along the second axis.
    first, *between, last = spacing
    return (first, between[0] if between else 1e300, last)


def _cut(plan: Discs) -> tuple[Array, Array, Array, Array]:
    return plan.points.numpy(), plan.ends.numpy(), plan.taps.numpy(), plan.tap_ends.numpy()


class _Buffers:
    """What a thread needs to sum up balls: planes folded onto each other in one type, sums in another."""

    def __init__(self, plan: Discs, shape: tuple[int, ...], folded: Any, kind: Any) -> None:
        row, wide = shape[2], STRIP * (shape[2] + 2 * plan.reach[2])
        self.arrays = (
            _aligned((plan.reach[0] + 1) * (shape[1] + 2 * plan.reach[1]) * row, folded),
            _aligned(STRIP * row, kind),
            _aligned(wide, kind),
            _aligned(len(plan.sizes) * wide, kind),
        )


def _aligned(count: int, kind: Any) -> Array:
    """Room for numbers that begins with a line of the cache: else every vector of 64 bytes lies in two of them."""
    size = count * np.dtype(kind).itemsize
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(kind)


@numba.njit(**EXACT)
def _fold(x: Any, shape: Any, far: Any, i: Any, folded: Any) -> None:
    """Sums of planes at equal distances in front of and behind a plane, [distance][row, border rows repeated]."""
    n, plane, rows = at(shape[2]), at(shape[1] * shape[2]), shape[1] + 2 * far[1]
    for d in range(far[0] + 1):
        start = at((d * rows + far[1]) * shape[2])
        front, behind = at(max(i - d, 0) * plane), at(min(i + d, shape[0] - 1) * plane)
        if d == 0:
            put(folded, start, x, front, plane)
        else:
            put_pair(folded, start, x, front, behind, plane)
        for j in range(far[1]):
            put(folded, at((d * rows + j) * shape[2]), folded, start, n)
            put(folded, at((d * rows + far[1] + shape[1] + j) * shape[2]), folded, start + plane - n, n)


@numba.njit(**EXACT)
def _grow(folded: Any, shape: Any, far: Any, points: Any, first: Any, end: Any, j: Any, n: Any, disc: Any) -> None:
    """Add points to the disc around each voxel of a strip of rows that begins at row j."""
    row, rows, zero = shape[2], shape[1] + 2 * far[1], at(0)
    point = first
    while point < end:
        here = points[point, 0] * rows + far[1] + j
        across = points[point, 1]
        if across == 0:
            add(disc, zero, folded, at(here * row), n)
            point += 1
            continue
        pairs = 1
        while pairs < 4 and point + pairs < end and points[point + pairs, 1] > 0:
            pairs += 1
        a, b = at((here - across) * row), at((here + across) * row)
        if pairs == 1:
            add_pair(disc, zero, folded, a, b, n)
            point += 1
            continue
        here, across = points[point + 1, 0] * rows + far[1] + j, points[point + 1, 1]
        c, d = at((here - across) * row), at((here + across) * row)
        if pairs < 4:
            add_two_pairs(disc, zero, folded, a, b, c, d, n)
            point += 2
            continue
        here, across = points[point + 2, 0] * rows + far[1] + j, points[point + 2, 1]
        e, f = at((here - across) * row), at((here + across) * row)
        here, across = points[point + 3, 0] * rows + far[1] + j, points[point + 3, 1]
        g, h = at((here - across) * row), at((here + across) * row)
        add_four_pairs(disc, zero, folded, a, b, c, d, e, f, g, h, n)
        point += 4


@numba.njit(**EXACT)
def _pile(shape: Any, far: Any, cut: Any, j: Any, strip: Any, buffers: Any) -> None:
    """Sums over balls of all radii around each voxel of a strip, from the folded planes.

    They are as `wide`, [radius][row, its ends repeated], and those around repeated voxels mean nothing.
    """
    points, ends, taps, tap_ends = cut
    folded, disc, wide, balls = buffers
    row, n = shape[2], at(shape[2])
    width, margin = row + 2 * far[2], at(far[2])
    fill(disc, at(0), disc.dtype.type(0), at(len(disc)))
    fill(balls, at(0), disc.dtype.type(0), at(len(balls)))
    first, tap = 0, 0
    for number in range(len(ends)):
        _grow(folded, shape, far, points, first, ends[number], j, at(strip * row), disc)
        first = ends[number]
        for s in range(strip):
            start = at(s * width)
            fill(wide, start, disc[s * row], margin)
            put(wide, start + margin, disc, at(s * row), n)
            fill(wide, start + margin + n, disc[s * row + row - 1], margin)
        while tap < tap_ends[number]:
            radius, height = taps[tap, 0], taps[tap, 1]
            # All rows at once.
            target, centre, flat = at(radius * len(wide) + far[2]), far[2], at((strip - 1) * width + row)
            if height == 0:
                add(balls, target, wide, at(centre), flat)
            else:
                add_pair(balls, target, wide, at(centre - height), at(centre + height), flat)
            tap += 1


@numba.njit(**EXACT)
def _weigh(balls: Any, o: Any, size: Any, weight: Any, n: Any, full: Any, f: Any, empty: Any, e: Any) -> None:
    """Add how full, and how empty, a ball is beyond a half."""
    real = full.dtype.type
    half, one, scale = real(0.5), real(1), weight / real(0.5)
    for k in range(n):
        share = real(balls[o + k]) / size
        above, below = share - half, (one - share) - half
        full[f + k] += real(0) if above <= 0 else above * scale
        empty[e + k] += real(0) if below <= 0 else below * scale


@numba.njit(**EXACT)
def _mark(balls: Any, o: Any, size: Any, bit: Any, n: Any, sides: Any, byte: Any, base: Any) -> None:
    """Record on which side of a half a ball's share lies; on neither if it is a half."""
    real = balls.dtype.type
    half, one = real(0.5), real(1)
    for k in range(n):
        share = balls[o + k] / size
        sides[byte, 0, base + k] |= bit if share > half else np.uint8(0)
        sides[byte, 1, base + k] |= bit if one - share > half else np.uint8(0)


@compiled
def _high_rows(p: Any, row: Any, out: Any) -> None:
    """Whether a row holds anything above a half, NaN included."""
    half = p.dtype.type(0.5)
    for j in range(out.shape[0]):
        found = np.uint8(0)
        base = at(j * row)
        for k in range(at(row)):
            found |= np.uint8(not (p[base + k] <= half))
        out[j] = found


@numba.njit(**EXACT)
def _reached(high: Any, shape: Any, far: Any, i: Any, out: Any) -> None:
    """Per row, whether one of a plane's neighbours within the largest ball's reach is a high row."""
    for j in range(shape[1]):
        found = False
        for z in range(max(i - far[0], 0), min(i + far[0] + 1, shape[0])):
            found |= high[z * shape[1] + j] != 0
        out[j] = found


@numba.njit(**EXACT)
def _any(y: Any, o: Any, n: Any) -> Any:
    found = np.uint8(0)
    for k in range(n):
        found |= y[o + k]
    return found != 0


@compiled
def _values(
    p: Any,
    y: Any,
    high: Any,
    shape: Any,
    cut: Any,
    far: Any,
    begin: Any,
    end: Any,
    label_buffers: Any,
    buffers: Any,
    by_label: Any,
    sizes: Any,
    weights: Any,
    sums: Any,
    sides: Any,
    out: Any,
) -> None:
    """Each plane's sum; the gradient without what balls pass on; and the balls' sides."""
    plane, row = shape[1] * shape[2], shape[2]
    real = p.dtype.type
    two, length, wide = real(2), len(label_buffers[1]), len(label_buffers[2])
    margin, width = far[2], row + 2 * far[2]
    full, empty, value = np.empty(length, p.dtype), np.empty(length, p.dtype), np.empty(length, p.dtype)
    by_full, by_empty = by_label[0], by_label[1]
    reached = np.empty(shape[1], np.bool_)
    for i in range(begin, end):
        fill(by_full, at(0), real(0), at(plane))
        fill(by_empty, at(0), real(0), at(plane))
        _fold(y, shape, far, i, label_buffers[0])
        for j in range(0, shape[1], length // row):
            strip = min(length // row, shape[1] - j)
            _pile(shape, far, cut, j, strip, label_buffers)
            for r in range(len(sizes)):
                for s in range(strip):
                    start, ball = at((j + s) * row), at(r * wide + s * width + margin)
                    _weigh(
                        label_buffers[3], ball, sizes[r], weights[r], at(row), by_full, start, by_empty, start
                    )  # fmt: skip
        _reached(high, shape, far, i, reached)
        folded = False
        for j in range(0, shape[1], length // row):
            strip = min(length // row, shape[1] - j)
            n, zero, base = at(strip * row), at(0), at(i * plane + j * row)
            # Without a label, only balls more than half full of p count.
            needed = _any(y, base, n)
            for k in range(max(j - far[1], 0), min(j + strip + far[1], shape[1])):
                needed |= reached[k]
            if needed:
                if not folded:
                    _fold(p, shape, far, i, buffers[0])
                    folded = True
                _pile(shape, far, cut, j, strip, buffers)
            # Over-segmentation weighs more in balls full of p or empty of y; under-segmentation the other way round.
            put(full, zero, by_empty, at(j * row), n)
            put(empty, zero, by_full, at(j * row), n)
            for r in range(len(sizes) if needed else 0):
                bit = np.uint8(1 << (r % 8))
                for s in range(strip):
                    start, ball = at(s * row), at(r * wide + s * width + margin)
                    _weigh(buffers[3], ball, sizes[r], weights[r], at(row), full, start, empty, start)
                    if len(out) > 0:
                        _mark(buffers[3], ball, sizes[r], bit, at(row), sides, r // 8, base + start)
            for k in range(n):
                label = real(y[base + k])
                error = p[base + k] - label
                value[k] = error * error * (full[k] * p[base + k] + empty[k] * label)
            sums[i] += row_sum(value, zero, n)
            if len(out) > 0:
                for k in range(n):
                    label = real(y[base + k])
                    error = p[base + k] - label
                    out[base + k] = full[k] * error * (two * p[base + k] + error) + empty[k] * two * error * label
