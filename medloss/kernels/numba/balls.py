"""Errors that lie deep on the wrong side, by sums over balls, compiled: no map a radius, no Fourier transform.

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
from medloss.kernels.numba.compilation import EXACT, OPTIONS, compiled
from medloss.kernels.numba.rows import (
    add,
    add_four_pairs,
    add_pair,
    add_two_pairs,
    at,
    fill,
    put,
    put_pair,
    share_out,
)

Array: TypeAlias = npt.NDArray[Any]

#: Rows that a disc grows over at a time, and planes that a thread draws.
_STRIP, _PLANES = 16, 8
#: Points of the largest disc's quarter beyond which Fourier transforms are faster.
_MANY_POINTS = 1200


def supports(radii: Sequence[float], spacing: Sequence[float]) -> bool:
    """Whether it is the faster way."""
    return len(discs(tuple(radii), _three(spacing)).points) <= _MANY_POINTS


def deep_errors(
    p: Tensor,
    y: Tensor,
    radii: Sequence[float],
    weights: Sequence[float],
    spacing: Sequence[float],
    slopes: Tensor | None,
) -> float:
    """`ball_means.deep_errors` of one map `[*spatial]`."""
    plan = discs(tuple(radii), _three(spacing))
    shape = (p.shape[0], 1, p.shape[1]) if p.ndim == 2 else tuple(p.shape)
    plane = shape[1] * shape[2]
    probability, label = p.detach().reshape(-1).numpy(), y.reshape(-1).numpy().view(np.uint8)
    real = probability.dtype.type
    # A label's voxels in a ball are counted in the smallest integers that hold them.
    count = np.uint16 if int(plan.sizes.max()) < 1 << 16 else np.uint32
    out = np.empty(0, real) if slopes is None else slopes.view(-1).numpy()
    sides = np.zeros((0 if slopes is None else -(-len(radii) // 8), 2, probability.size), np.uint8)
    sums = np.zeros(shape[0])
    cut = _cut(plan)
    sizes, by_radius = plan.sizes.numpy().astype(real), np.array(weights, real)

    def forward(begin: int, end: int) -> None:
        buffers = (_Buffers(plan, shape, np.uint8, count), _Buffers(plan, shape, real, real))
        by_label = np.empty((2, plane), real)
        _values(
            probability, label, shape, cut, plan.reach, begin, end, buffers[0].arrays, buffers[1].arrays, by_label,
            sizes, by_radius, sums, sides, out,
        )  # fmt: skip

    share_out(shape[0], _PLANES, forward)
    if slopes is not None:
        # Lanes are apart from each other, all else flows together.
        share_out(
            shape[2],
            -(-shape[2] // torch.get_num_threads()),
            lambda b, e: _spread(probability, label, shape, cut, plan.reach, b, e, sizes, by_radius, sides, out),
        )
    return float(sums.sum())


def _three(spacing: Sequence[float]) -> tuple[float, float, float]:
    # A picture is a volume of rows of one voxel: nothing reaches along the second axis.
    first, *between, last = spacing
    return (first, between[0] if between else 1e300, last)


def _cut(plan: Discs) -> tuple[Array, Array, Array, Array]:
    return plan.points.numpy(), plan.ends.numpy(), plan.taps.numpy(), plan.tap_ends.numpy()


class _Buffers:
    """What a thread needs to sum up balls: planes folded onto each other in one type, sums in another."""

    def __init__(self, plan: Discs, shape: tuple[int, ...], folded: Any, kind: Any) -> None:
        row = shape[2]
        self.arrays = (
            np.empty((plan.reach[0] + 1) * (shape[1] + 2 * plan.reach[1]) * row, folded),
            np.empty(_STRIP * row, kind),
            np.empty(_STRIP * (row + 2 * plan.reach[2]), kind),
            np.empty(len(plan.sizes) * _STRIP * row, kind),
        )


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
    """Sums over balls of all radii around each voxel of a strip, [radius][strip], from the folded planes."""
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
            for s in range(strip):
                target, centre = at(radius * len(disc) + s * row), s * width + far[2]
                if height == 0:
                    add(balls, target, wide, at(centre), n)
                else:
                    add_pair(balls, target, wide, at(centre - height), at(centre + height), n)
            tap += 1


@numba.njit(**OPTIONS)
def _sum(x: Any, o: Any, n: Any) -> Any:
    total = x.dtype.type(0)
    for k in range(n):
        total += x[o + k]
    return total


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
    """Note on which side of a half a ball's share lies; on neither where it is a half."""
    real = balls.dtype.type
    half, one = real(0.5), real(1)
    for k in range(n):
        share = balls[o + k] / size
        sides[byte, 0, base + k] |= bit if share > half else np.uint8(0)
        sides[byte, 1, base + k] |= bit if one - share > half else np.uint8(0)


@compiled
def _values(
    p: Any,
    y: Any,
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
    """Each plane's sum; the slope but for what balls pass on; and the balls' sides."""
    plane, row = shape[1] * shape[2], shape[2]
    real = p.dtype.type
    two, length = real(2), len(label_buffers[1])
    full, empty, value = np.empty(length, p.dtype), np.empty(length, p.dtype), np.empty(length, p.dtype)
    by_full, by_empty = by_label[0], by_label[1]
    for i in range(begin, end):
        fill(by_full, at(0), real(0), at(plane))
        fill(by_empty, at(0), real(0), at(plane))
        _fold(y, shape, far, i, label_buffers[0])
        for j in range(0, shape[1], length // row):
            strip = min(length // row, shape[1] - j)
            _pile(shape, far, cut, j, strip, label_buffers)
            for r in range(len(sizes)):
                start = at(j * row)
                n = at(strip * row)
                _weigh(label_buffers[3], at(r * length), sizes[r], weights[r], n, by_full, start, by_empty, start)
        _fold(p, shape, far, i, buffers[0])
        for j in range(0, shape[1], length // row):
            strip = min(length // row, shape[1] - j)
            n, zero, base = at(strip * row), at(0), at(i * plane + j * row)
            _pile(shape, far, cut, j, strip, buffers)
            # What over-segments is dear in balls full of p or empty of y; what under-segments the other way round.
            put(full, zero, by_empty, at(j * row), n)
            put(empty, zero, by_full, at(j * row), n)
            for r in range(len(sizes)):
                _weigh(buffers[3], at(r * length), sizes[r], weights[r], n, full, zero, empty, zero)
                if len(out) > 0:
                    bit = np.uint8(1 << (r % 8))
                    _mark(buffers[3], at(r * length), sizes[r], bit, n, sides, r // 8, base)
            for k in range(n):
                label = real(y[base + k])
                error = p[base + k] - label
                value[k] = error * error * (full[k] * p[base + k] + empty[k] * label)
            sums[i] += _sum(value, zero, n)
            if len(out) > 0:
                for k in range(n):
                    label = real(y[base + k])
                    error = p[base + k] - label
                    out[base + k] = full[k] * error * (two * p[base + k] + error) + empty[k] * two * error * label


@numba.njit(**EXACT)
def _pulls(
    p: Any,
    y: Any,
    base: Any,
    n: Any,
    sizes: Any,
    weights: Any,
    sides: Any,
    pulls: Any,
    width: Any,
    start: Any,
    over: Any,
) -> None:
    """What each voxel's balls pass on to the voxels in them, a row a radius."""
    real = p.dtype.type
    under = n
    for k in range(n):
        label = real(y[base + k])
        error = (p[base + k] - label) ** 2
        over[k] = error * p[base + k]
        over[under + k] = error * label
    for r in range(len(sizes)):
        factor = weights[r] / real(0.5) / sizes[r]
        bit, byte, o = np.uint8(1 << (r % 8)), r // 8, at(r * width + start)
        for k in range(n):
            up = over[k] if sides[byte, 0, base + k] & bit else real(0)
            down = over[under + k] if sides[byte, 1, base + k] & bit else real(0)
            pulls[o + k] = (up - down) * factor


@numba.njit(**EXACT)
def _gather(pulls: Any, centre: Any, width: Any, taps: Any, first: Any, end: Any, grown: Any, o: Any, n: Any) -> None:
    """Add a disc's taps to a row of what reaches its centre's discs."""
    for tap in range(first, end):
        start, height = taps[tap, 0] * width + centre, taps[tap, 1]
        if height == 0:
            add(grown, o, pulls, at(start), n)
        else:
            add_pair(grown, o, pulls, at(start - height), at(start + height), n)


@numba.njit(**EXACT)
def _fall(grown: Any, start: Any, before: Any, lanes: Any, behind: Any, passed: Any, o: Any) -> None:
    """A row without what lies beyond its ends, which falls to its first and last voxel."""
    put(passed, at(o), grown, at(start + before), at(lanes))
    if before > 0:
        passed[at(o)] += _sum(grown, at(start), at(before))
    if behind > 0:
        passed[at(o + lanes - 1)] += _sum(grown, at(start + before + lanes), at(behind))


@compiled
def _spread(
    p: Any,
    y: Any,
    shape: Any,
    cut: Any,
    far: Any,
    begin: Any,
    end: Any,
    sizes: Any,
    weights: Any,
    sides: Any,
    out: Any,
) -> None:
    """Add to the slopes in some lanes what the balls pass on: the discs, from the largest to the smallest."""
    points, ends, taps, tap_ends = cut
    row, lanes = shape[2], end - begin
    m = at(lanes)
    rows, real = shape[1] + 2 * far[1], p.dtype.type
    # Beyond a border the lanes go on as far as balls reach; in the end they fall to the border's voxel.
    low, high = begin - (far[2] if begin == 0 else 0), end + (far[2] if end == row else 0)
    long = at(high - low)
    nearest = max(begin - far[2], 0)
    needed = at(min(end + far[2], row) - nearest)
    width = row + 4 * far[2]
    block = len(sizes) * width
    over = np.empty(2 * row, p.dtype)
    pulls = np.zeros(_STRIP * block, p.dtype)
    grown, passed = np.empty(_STRIP * (high - low), p.dtype), np.empty(_STRIP * lanes, p.dtype)
    spread = np.empty((far[0] + 1) * rows * lanes, p.dtype)
    for i in range(shape[0]):
        fill(spread, at(0), real(0), at(len(spread)))
        for j in range(0, shape[1], _STRIP):
            strip = min(_STRIP, shape[1] - j)
            for s in range(strip):
                base = at((i * shape[1] + j + s) * row + nearest)
                start = s * block + 2 * far[2] + nearest
                _pulls(p, y, base, needed, sizes, weights, sides, pulls, width, start, over)
            fill(grown, at(0), real(0), at(len(grown)))
            for number in range(len(ends) - 1, -1, -1):
                first_tap = tap_ends[number - 1] if number > 0 else 0
                for s in range(strip):
                    centre = s * block + 2 * far[2] + low
                    _gather(pulls, centre, width, taps, first_tap, tap_ends[number], grown, at(s * (high - low)), long)
                    _fall(grown, s * (high - low), begin - low, lanes, high - end, passed, s * lanes)
                first_point = ends[number - 1] if number > 0 else 0
                for point in range(first_point, ends[number]):
                    here, across = points[point, 0] * rows + far[1] + j, points[point, 1]
                    add(spread, at((here - across) * lanes), passed, at(0), at(strip * lanes))
                    if across > 0:
                        add(spread, at((here + across) * lanes), passed, at(0), at(strip * lanes))
        for d in range(far[0] + 1):
            top, bottom = (d * rows + far[1]) * lanes, (d * rows + far[1] + shape[1] - 1) * lanes
            for s in range(1, far[1] + 1):
                add(spread, at(top), spread, at(top - s * lanes), m)
                add(spread, at(bottom), spread, at(bottom + s * lanes), m)
            for j in range(shape[1]):
                source = at((d * rows + far[1] + j) * lanes)
                add(out, at((max(i - d, 0) * shape[1] + j) * row + begin), spread, source, m)
                if d > 0:
                    add(out, at((min(i + d, shape[0] - 1) * shape[1] + j) * row + begin), spread, source, m)
