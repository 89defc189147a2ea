"""The gradients of deep errors in balls, compiled: what a voxel's balls pass on to the voxels in them.

Backwards as forwards (`discs`) a ball is a pile of discs; here they shrink, from the largest to the smallest.
"""

from typing import Any

import numba
import numpy as np

from medloss.kernels.numba.compilation import EXACT, compiled
from medloss.kernels.numba.discs import ROWS
from medloss.kernels.numba.vector_ops import add, at, fill
from medloss.kernels.numba.vectors import LANES, load, store, zeros


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
    marked = np.uint8(0)
    for o in range(0, len(sides), p.size):
        for k in range(n):
            marked |= sides[at(o) + base + k]
    if marked == 0:
        for r in range(len(sizes)):
            fill(pulls, at(r * block + start), pulls.dtype.type(0), n)
        return False
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
        bit, o = np.uint8(1 << (r % 8)), at(r * block + start)
        more = at(r // 8 * 2 * p.size) + base
        less = more + at(p.size)
        for k in range(n):
            up = over[k] if sides[more + k] & bit else real(0)
            down = over[under + k] if sides[less + k] & bit else real(0)
            pulls[o + k] = (up - down) * factor
        for k in range(n):
            found |= pulls[o + k] != 0
    return found


@numba.njit(**EXACT)
def _pile_up(
    pulls: Any, lane: Any, row: Any, far: Any, width: Any, margin: Any, cut: Any, ends: Any, discs: Any
) -> None:
    """What each disc around vectors of voxels of four rows passes on, [disc][row], from the largest to the smallest."""
    tap_rows, tap_heights, tap_sums, tap_ends, _, _ = cut
    for s in range(ROWS):
        here, to, tap = at(s * width + margin + lane), at(s * LANES), at(0)
        disc = zeros(discs)
        for number in range(len(tap_ends)):
            while tap < tap_ends[number]:
                pull, height = here + tap_rows[tap], tap_heights[tap]
                if height == 0:
                    disc = disc + load(pulls, pull)
                else:
                    disc = disc + (load(pulls, pull - height) + load(pulls, pull + height))
                tap += at(1)
            store(discs, to, disc)
            to += at(ROWS * LANES)
        # What falls beyond a border falls to its voxel.
        for side in range(2):
            border = side * (row - 1)
            if not lane <= border < lane + LANES:
                continue
            for r in range(ends.shape[1] // (far + 1)):
                _sum_end(pulls, at((r * ROWS + s) * width + margin), row, far, side, ends[side], at(r * (far + 1)))
            to, tap, fallen = at(s * LANES + border - lane), at(0), pulls.dtype.type(0)
            for number in range(len(tap_ends)):
                while tap < tap_ends[number]:
                    fallen += ends[side, tap_sums[tap]]
                    tap += at(1)
                discs[to] += fallen
                to += at(ROWS * LANES)


@numba.njit(**EXACT)
def _sum_end(pulls: Any, start: Any, n: Any, far: Any, side: Any, out: Any, o: Any) -> None:
    """The sums of a row's first, or last, numbers, for each number of them up to `far`."""
    total = pulls.dtype.type(0)
    for h in range(far):
        out[o + at(h)] = total
        total += pulls[start + at(h if side == 0 else n - 1 - h)]
    out[o + at(far)] = total


@numba.njit(**EXACT)
def _spread(discs: Any, first: Any, far: Any, plane: Any, cut: Any, spread: Any) -> None:
    """Add what the discs around vectors of voxels of four rows pass on to the folded planes."""
    _, _, _, _, blocks, heights = cut
    second, third, fourth = at(LANES), at(2 * LANES), at(3 * LANES)
    for d in range(len(heights)):
        height = np.int64(heights[d])
        block, to = blocks[d], at(d * plane + first - height * LANES)
        # Distances from the four rows: the next row's are those of this row, and one more.
        k = at(far + ROWS - 1 - height)
        b, c, e = block[k - at(1)], block[k - at(2)], block[k - at(3)]
        for _ in range(2 * height + ROWS):
            a = block[k]
            passed = (load(discs, a) + load(discs, second + b)) + (load(discs, third + c) + load(discs, fourth + e))
            store(spread, to, load(spread, to) + passed)
            b, c, e = a, b, c
            k += at(1)
            to += at(LANES)


@numba.njit(**EXACT)
def _collect(spread: Any, shape: Any, far: Any, rows: Any, pitch: Any, i: Any, begin: Any, end: Any, out: Any) -> None:
    """Add the folded planes to the gradient, what lies beyond a border to its voxels."""
    row = shape[2]
    for d in range(far[0] + 1):
        for lane in range(begin, end, LANES):
            n = at(min(LANES, row - lane))
            top = at(d * rows * pitch + lane * rows + far[1] * LANES)
            bottom = top + at((shape[1] - 1) * LANES)
            first, last = load(spread, top), load(spread, bottom)
            for s in range(1, far[1] + 1):
                first = first + load(spread, top - at(s * LANES))
                if shape[1] == 1:
                    first = first + load(spread, bottom + at(s * LANES))
                else:
                    last = last + load(spread, bottom + at(s * LANES))
            if shape[1] > 1:
                store(spread, bottom, last)
            store(spread, top, first)
            source = top
            for j in range(shape[1]):
                add(out, at((max(i - d, 0) * shape[1] + j) * row + lane), spread, source, n)
                if d > 0:
                    add(out, at((min(i + d, shape[0] - 1) * shape[1] + j) * row + lane), spread, source, n)
                source += at(LANES)


@compiled
def spread_gradients(
    p: Any,
    y: Any,
    shape: Any,
    far: Any,
    places: Any,
    cut: Any,
    begin: Any,
    end: Any,
    sizes: Any,
    weights: Any,
    sides: Any,
    discs: Any,
    spread: Any,
    out: Any,
) -> None:
    """Add to the gradients in some lanes what the balls pass on: the discs, from the largest to the smallest.

    Args:
        p: probabilities of a map, flat.
        y: its label, uint8.
        shape: the map's, three axes.
        far: `Layout.reach`.
        places: `Layout.rows`, `pitch` and `margin`.
        cut: `Layout.backward`.
        begin: the first lane, a multiple of `LANES`.
        end: the end of the lanes, another one or the row's.
        sizes: `Layout.sizes`, as `p`.
        weights: per radius.
        sides: bits of the balls, as `balls._Map.sides`.
        discs: room for the discs of a vector of voxels of four rows, and a block of zeros behind them.
        spread: room for the folded planes.
        out: the gradient, flat; what the balls pass on is added.
    """
    rows, pitch, margin = places
    row, real = shape[2], p.dtype.type
    nearest = max(begin - far[2], 0)
    needed = at(min(end + far[2], row) - nearest)
    width = pitch + 2 * margin
    over = np.empty(2 * row, p.dtype)
    # Rows of what balls pass on, between zeros.
    pulls = np.zeros(len(sizes) * ROWS * width, p.dtype)
    ends = np.zeros((2, len(sizes) * (far[2] + 1)), p.dtype)
    for i in range(shape[0]):
        passed = False
        for j in range(0, shape[1], ROWS):
            found = False
            for s in range(ROWS):
                start = s * width + margin + nearest
                if j + s < shape[1]:
                    base = at((i * shape[1] + j + s) * row + nearest)
                    found |= _pulls(p, y, base, needed, sizes, weights, sides, pulls, ROWS * width, start, over)
                else:
                    for r in range(len(sizes)):
                        fill(pulls, at(r * ROWS * width + start), real(0), needed)
            if not found:
                continue
            if not passed:
                passed = True
                fill(spread, at(0), real(0), at(len(spread)))
            for lane in range(begin, end, LANES):
                _pile_up(pulls, lane, row, far[2], width, margin, cut, ends, discs)
                _spread(discs, lane * rows + (far[1] + j) * LANES, far[1], rows * pitch, cut, spread)
        if passed:
            _collect(spread, shape, far, rows, pitch, i, begin, end, out)
