"""The gradients of deep errors in balls, compiled: what a voxel's balls pass on to the voxels in them.

Backwards as forwards (`balls`) a ball is a pile of discs; here they shrink, from the largest to the smallest.
"""

from typing import Any

import numba
import numpy as np

from medloss.kernels.numba.compilation import EXACT, compiled
from medloss.kernels.numba.vector_ops import add, add_pair, at, fill, put

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
    block: Any,
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
        bit, byte, o = np.uint8(1 << (r % 8)), r // 8, at(r * block + start)
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
def _sum_ends(pulls: Any, start: Any, n: Any, far: Any, ends: Any, o: Any) -> None:
    """The sums of a row's first and last numbers, for each number of them up to `far`."""
    first = last = pulls.dtype.type(0)
    for h in range(far):
        ends[0, o + h], ends[1, o + h] = first, last
        first += pulls[start + h]
        last += pulls[start + n - 1 - h]
    ends[0, o + far], ends[1, o + far] = first, last


@numba.njit(**EXACT)
def _compact(grown: Any, start: Any, lanes: Any, first: Any, last: Any, passed: Any, o: Any) -> None:
    """A row with what lies beyond its ends added to its first and last voxel."""
    put(passed, at(o), grown, at(start), at(lanes))
    passed[at(o)] += first
    passed[at(o + lanes - 1)] += last


@numba.njit(**EXACT)
def _aligned(count: Any, like: Any) -> Any:
    """`balls._aligned`."""
    room = np.empty(count + 64 // like.itemsize, like.dtype)
    start = (-room.ctypes.data % 64) // like.itemsize
    return room[start : start + count]


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
    margin = far[2]
    nearest = max(begin - margin, 0)
    needed = at(min(end + margin, row) - nearest)
    # A row of what balls pass on, between as many zeros as balls reach.
    width = row + 2 * margin
    block = STRIP * width
    over = np.empty(2 * row, p.dtype)
    pulls = np.zeros(len(sizes) * block, p.dtype)
    # What falls beyond a border falls to its voxel: the sums of a row's ends, and those of the discs so far.
    per_row = margin + 1
    sums = np.zeros((2, len(sizes) * STRIP * per_row), p.dtype)
    fallen = np.empty((2, STRIP), p.dtype)
    grown, passed = np.empty(block, p.dtype), _aligned(STRIP * lanes, p)
    spread = _aligned((far[0] + 1) * rows * lanes, p)
    first_lane, at_start, at_end = margin + begin, begin == 0, end == row
    for i in range(shape[0]):
        fill(spread, at(0), real(0), at(len(spread)))
        for j in range(0, shape[1], STRIP):
            strip = min(STRIP, shape[1] - j)
            found = False
            for s in range(strip):
                base = at((i * shape[1] + j + s) * row + nearest)
                start = s * width + margin + nearest
                found |= _pulls(p, y, base, needed, sizes, weights, sides, pulls, block, start, over)
            if not found:
                continue
            for r in range(len(sizes)):
                for s in range(strip):
                    o = (r * STRIP + s) * per_row
                    _sum_ends(pulls, r * block + s * width + margin, row, margin, sums, o)
            fill(grown, at(0), real(0), at(len(grown)))
            for s in range(strip):
                fallen[0, s] = fallen[1, s] = 0
            flat = at((strip - 1) * width + lanes)
            for number in range(len(ends) - 1, -1, -1):
                for tap in range(tap_ends[number - 1] if number > 0 else 0, tap_ends[number]):
                    radius, height = taps[tap, 0], taps[tap, 1]
                    # All rows at once: what lands between them is not read.
                    centre = radius * block + first_lane
                    if height == 0:
                        add(grown, at(first_lane), pulls, at(centre), flat)
                        continue
                    add_pair(grown, at(first_lane), pulls, at(centre - height), at(centre + height), flat)
                    for s in range(strip):
                        o = (radius * STRIP + s) * per_row + height
                        fallen[0, s] += sums[0, o] if at_start else real(0)
                        fallen[1, s] += sums[1, o] if at_end else real(0)
                for s in range(strip):
                    _compact(grown, s * width + first_lane, lanes, fallen[0, s], fallen[1, s], passed, s * lanes)
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
