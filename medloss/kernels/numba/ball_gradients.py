"""The gradients of deep errors in balls, compiled: what a voxel's balls pass on to the voxels in them.

Backwards as forwards (`balls`) a ball is a pile of discs; here they shrink, from the largest to the smallest.
"""

from typing import Any

import numba
import numpy as np

from medloss.kernels.numba.compilation import EXACT, compiled
from medloss.kernels.numba.vector_ops import add, add_pair, at, fill, put, row_sum

#: Rows that a disc grows over at a time.
STRIP = 16


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
) -> Any:
    """What each voxel's balls pass on to the voxels in them, a row per radius; whether that is anything."""
    found = False
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
        bits = np.uint8(0)
        for k in range(n):
            bits |= (sides[byte, 0, base + k] | sides[byte, 1, base + k]) & bit
        if bits:
            for k in range(n):
                found |= pulls[o + k] != 0
    return found


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
        passed[at(o)] += row_sum(grown, at(start), at(before))
    if behind > 0:
        passed[at(o + lanes - 1)] += row_sum(grown, at(start + before + lanes), at(behind))


@compiled
def spread_gradients(
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
    """Add to the gradients in some lanes what the balls pass on: the discs, from the largest to the smallest."""
    points, ends, taps, tap_ends = cut
    row, lanes = shape[2], end - begin
    m = at(lanes)
    rows, real = shape[1] + 2 * far[1], p.dtype.type
    # Beyond a border the lanes extend as far as balls reach; in the end they fall to the border's voxel.
    low, high = begin - (far[2] if begin == 0 else 0), end + (far[2] if end == row else 0)
    long = at(high - low)
    nearest = max(begin - far[2], 0)
    needed = at(min(end + far[2], row) - nearest)
    width = row + 4 * far[2]
    block = len(sizes) * width
    over = np.empty(2 * row, p.dtype)
    pulls = np.zeros(STRIP * block, p.dtype)
    grown, passed = np.empty(STRIP * (high - low), p.dtype), np.empty(STRIP * lanes, p.dtype)
    spread = np.empty((far[0] + 1) * rows * lanes, p.dtype)
    for i in range(shape[0]):
        fill(spread, at(0), real(0), at(len(spread)))
        for j in range(0, shape[1], STRIP):
            strip = min(STRIP, shape[1] - j)
            found = False
            for s in range(strip):
                base = at((i * shape[1] + j + s) * row + nearest)
                start = s * block + 2 * far[2] + nearest
                found |= _pulls(p, y, base, needed, sizes, weights, sides, pulls, width, start, over)
            if not found:
                continue
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
