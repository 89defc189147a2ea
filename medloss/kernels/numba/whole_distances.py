"""Exact squared distances in whole numbers of 16 bits, compiled, where the squares of the spacing are multiples of one.

As in `distance`, axis by axis, outwards from each row of a tile until nothing further out can be less; but twice as
many numbers fit a vector register, and the two sides are separate fields, each 0 on the other side, so that a step is
an addition and a minimum.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from medloss.kernels.numba.compilation import OPTIONS, compiled
from medloss.kernels.numba.vector_ops import at, share_out

#: Neighbouring lines in a tile; rows that repeat its first and last one, and steps between two looks at the bounds.
LANES, STEPS = 64, 4
#: Stands for infinity.
MOST = 65535
#: Which side's distances are wanted.
BOTH, INSIDE, OUTSIDE = 0, 1, 2
#: Voxels per task of a thread.
_VOXELS = 1 << 16
#: The rows of a tile's bounds: the least and the largest number in each of its rows, the least up to and from each on,
#: and in the four from it on.
_LOW, _HIGH, _BELOW, _ABOVE, _NEXT, _BOUNDS = range(6)

_ZERO, _ONE, _MOST = np.uint16(0), np.uint16(1), np.uint16(MOST)
#: More steps than a row has.
_FAR = np.uint16(1 << 14)


def multiples(spacing: Sequence[float], shape: Sequence[int]) -> list[int] | None:
    """The squares of the spacing as multiples of the least one; None where they are not, or distances would not fit."""
    squares = [s * s for s in spacing]
    ratios = [square / min(squares) for square in squares]
    whole = [round(ratio) for ratio in ratios]
    exact = all(abs(ratio - n) <= 1e-12 * n for ratio, n in zip(ratios, whole, strict=True))
    largest = sum(m * (n - 1) ** 2 for m, n in zip(whole, shape, strict=True))
    return whole if exact and largest < MOST else None


class Volume:
    """A volume with voxels inside and outside, and where its distances go.

    Args:
        marks: whole numbers, `[planes, rows, row]`.
        label: the number that is inside.
        steps: what `multiples` gave.
        spacing: mm, two or three axes.
        out: float32 or float64, as `marks`.
        base: numbers as `out` whose squares are added to the squares; None for 0.
    """

    def __init__(
        self,
        marks: npt.NDArray[Any],
        label: int,
        steps: Sequence[int],
        spacing: Sequence[float],
        out: npt.NDArray[Any],
        base: npt.NDArray[Any] | None = None,
    ) -> None:
        self.marks, self.label = marks, marks.dtype.type(label)
        # A 2D image is a volume of rows of one voxel.
        self.steps = (steps[0], steps[1] if len(steps) == 3 else 1, steps[-1])
        columns = (marks.shape[0], -1)
        # Squares are float32, as those that floats give, whatever they are added to.
        self.unit, self.out = np.float32(min(spacing) ** 2), out.reshape(columns)
        self.base = np.empty((0, 0), out.dtype) if base is None else base.reshape(columns)


def write_distances(volumes: Sequence[Volume], side: int, root: bool) -> None:
    """Write the distances of volumes of one shape.

    Args:
        volumes: of them.
        side: `BOTH`, `INSIDE` or `OUTSIDE`; the other side's distances are 0.
        root: whether distances are wanted, negative inside for `BOTH`; else their squares.
    """
    if not volumes:
        return
    planes, rows, row = volumes[0].marks.shape
    columns = rows * row
    fields = np.empty((len(volumes), planes, rows, row), np.uint16)

    def within(begin: int, end: int) -> None:
        for i, start, stop in parts(begin, end, planes):
            v = volumes[i]
            _within(v.marks, v.label, fields[i], v.steps[1], v.steps[2], side, start, stop)

    def between(begin: int, end: int) -> None:
        for i, start, stop in parts(begin, end, columns):
            v = volumes[i]
            marks, field = v.marks.reshape(planes, columns), fields[i].reshape(planes, columns)
            _between(marks, v.label, field, v.steps[0], v.unit, side, root, v.base, v.out, start, stop)

    share_out(len(volumes) * planes, max(1, _VOXELS // columns), within)
    share_out(len(volumes) * columns, max(1, _VOXELS // (planes * LANES)) * LANES, between)


def parts(begin: int, end: int, size: int) -> list[tuple[int, int, int]]:
    """A range of numbers, cut where one volume ends and the next begins: volume, and begin and end in it."""
    cuts = [begin, *range((begin // size + 1) * size, end, size), end]
    return [(a // size, a % size, a % size + b - a) for a, b in itertools.pairwise(cuts)]


@compiled
def find_sides(marks: Any, label: Any) -> Any:
    """Whether there are numbers inside, and outside."""
    inside = outside = np.uint8(0)
    for i in range(marks.shape[0]):
        inside |= np.uint8(marks[i] == label)
        outside |= np.uint8(marks[i] != label)
    return inside != 0, outside != 0


@compiled
def _within(marks: Any, label: Any, field: Any, row_step: Any, step: Any, side: Any, begin: Any, end: Any) -> None:
    """Squared distances within planes; `MOST` in a plane of one side. `row_step` is of the axis across rows."""
    rows, row = marks.shape[1], marks.shape[2]
    # Rows with as much space between them, and twice as much before and behind all.
    near, further = np.empty((2 * rows + 4) * row, np.uint16), np.empty((2 * rows + 4) * row, np.uint16)
    tile, best, bounds = _buffers(rows)
    for z in range(begin, end):
        plane, labels = field[z], marks[z]
        pure = _scan(labels.reshape(-1), label, step, side, at(rows), at(row), near, further, plane.reshape(-1))
        if pure | (rows == 1):
            continue
        for x in range(0, row, LANES):
            # Lines beyond the last one repeat it.
            found = min(LANES, row - x)
            for inside in range(2):
                if side == (OUTSIDE if inside else INSIDE):
                    continue
                _load(plane, labels, label, inside != 0, x, found, tile)
                if _sweep(tile, best, bounds, row_step):
                    _keep_side(best, labels, label, inside != 0, x, found, plane)


@numba.njit(**OPTIONS)
def _scan(marks: Any, label: Any, step: Any, side: Any, rows: Any, n: Any, near: Any, further: Any, out: Any) -> Any:
    """The squared distances along a plane's rows, `MOST` in a row of one side; whether the plane is of one side."""
    one, zero, two = at(1), at(0), at(2)
    for x in range(at(near.shape[0])):
        near[x] = further[x] = _FAR
    # A voxel next to the other side is 1 from it; any other is as far as from the next of these, and 1 more.
    different = np.uint8(0)
    for y in range(rows):
        o, to = y * n, (two * y + two) * n
        for x in range(n - one):
            near[to + x] = np.uint16(1) if (marks[o + x] == label) != (marks[o + x + one] == label) else _FAR
        for x in range(n - one):
            changed = (marks[o + x] == label) != (marks[o + x + one] == label)
            near[to + x + one] = np.uint16(1) if changed else near[to + x + one]
        different |= np.uint8((marks[o] == label) != (marks[zero] == label))
    # By powers of two, whose sums are all numbers. What comes from another row is more than a row's length.
    shift, begin, end = one, two * n, two * (n * rows + n)
    while shift < n:
        _spread(near, further, shift, begin, end)
        _spread(further, near, two * shift, begin, end)
        shift = two * two * shift
    inner = _ONE if side != OUTSIDE else _ZERO
    outer = _ONE if side != INSIDE else _ZERO
    most = np.int32(n)
    for y in range(rows):
        o, to = y * n, (two * y + two) * n
        if np.int32(near[to]) >= most:
            # Only a row of one side is so far from the other.
            value = _MOST * (inner if marks[o] == label else outer)
            for x in range(n):
                out[o + x] = value
        else:
            different = np.uint8(1)
            for x in range(n):
                count = np.uint16(near[to + x])
                out[o + x] = np.uint16(count * count * step) * (inner if marks[o + x] == label else outer)
    return different == 0


@numba.njit(**OPTIONS)
def _spread(near: Any, out: Any, shift: Any, begin: Any, end: Any) -> None:
    further = np.uint16(shift)
    for x in range(begin, end):
        out[x] = _less(near[x], np.uint16(_less(near[x - shift], near[x + shift]) + further))


@numba.njit(**OPTIONS)
def _load(rows: Any, marks: Any, label: Any, inside: Any, x: Any, found: Any, tile: Any) -> None:
    """One side's numbers, 0 on the other side."""
    for y in range(rows.shape[0]):
        to = tile[(y + STEPS) * LANES : (y + STEPS + 1) * LANES]
        source, labels = rows[y, x : x + found], marks[y, x : x + found]
        if found == LANES:
            for i in range(LANES):
                to[i] = source[i] if (labels[i] == label) == inside else _ZERO
        else:
            for i in range(LANES):
                k = min(i, found - 1)
                to[i] = source[k] if (labels[k] == label) == inside else _ZERO


@numba.njit(**OPTIONS)
def _keep_side(best: Any, marks: Any, label: Any, inside: Any, x: Any, found: Any, out: Any) -> None:
    for y in range(out.shape[0]):
        to, values, labels = out[y, x : x + found], best[y * LANES : y * LANES + found], marks[y, x : x + found]
        for i in range(found):
            to[i] = values[i] if (labels[i] == label) == inside else to[i]


@compiled
def _between(
    marks: Any,
    label: Any,
    field: Any,
    step: Any,
    unit: Any,
    side: Any,
    root: Any,
    base: Any,
    out: Any,
    begin: Any,
    end: Any,
) -> None:
    """The lines along the first axis of `[planes, columns]`, for a range of columns."""
    n = field.shape[0]
    tile, best, bounds = _buffers(n)
    other = np.empty(n * LANES, np.uint16)
    for x in range(begin, end, LANES):
        found = min(LANES, end - x)
        for inside in range(2):
            to = best if inside else other
            wanted = side != (OUTSIDE if inside else INSIDE)
            if wanted:
                _load(field, marks, label, inside != 0, x, found, tile)
            if not (wanted and _sweep(tile, to, bounds, step)):
                for i in range(n * LANES):
                    to[i] = _ZERO
        for z in range(n):
            outside, within, row = other[z * LANES :], best[z * LANES :], out[z, x : x + found]
            if root:
                negative = side == BOTH
                for i in range(found):
                    distance = np.sqrt(np.float32(np.int32(outside[i]) + np.int32(within[i])) * unit)
                    row[i] = -distance if negative & (within[i] != 0) else distance
            elif base.size > 0:
                given = base[z, x : x + found]
                for i in range(found):
                    square = np.float32(np.int32(outside[i]) + np.int32(within[i])) * unit
                    row[i] = given[i] * given[i] + square
            else:
                for i in range(found):
                    row[i] = np.float32(np.int32(outside[i]) + np.int32(within[i])) * unit


@numba.njit(**OPTIONS)
def _buffers(n: Any) -> Any:
    tile = np.empty((n + 2 * STEPS) * LANES, np.uint16)
    return tile, np.empty(n * LANES, np.uint16), np.zeros((_BOUNDS, n), np.int64)


@numba.njit(**OPTIONS)
def _sweep(tile: Any, best: Any, bounds: Any, step: Any) -> Any:
    """The least f(j) + s^2 (i - j)^2 for each row i of a tile; False where all are 0, and nothing is written."""
    n, lanes = bounds.shape[1], at(best.shape[0] // bounds.shape[1])
    if not _bound(tile, bounds):
        return False
    below, above, following = bounds[_BELOW], bounds[_ABOVE], bounds[_NEXT]
    first, last = 0, n - 1
    while first < last and bounds[_LOW, first] == MOST:
        first += 1
    while last > first and bounds[_LOW, last] == MOST:
        last -= 1
    for k in range(n * LANES):
        best[k] = tile[k + STEPS * LANES]
    for y in range(n):
        b, top = at(y * LANES), bounds[_HIGH, y]
        k = max(1, first - y, y - last)
        while True:
            c = step * k * k
            up = y + k <= last and c + above[min(y + k, n - 1)] < top
            down = y - k >= first and c + below[max(y - k, 0)] < top
            if not (up or down):
                break
            up = up and c + following[y + k] < top
            down = down and c + following[max(y - k - STEPS + 1, 0)] < top
            if up or down:
                c0, c1 = np.uint16(min(c, MOST)), np.uint16(min(step * (k + 1) * (k + 1), MOST))
                c2 = np.uint16(min(step * (k + 2) * (k + 2), MOST))
                c3 = np.uint16(min(step * (k + 3) * (k + 3), MOST))
                # A repeated row stands further off than the one it repeats: it is never the least.
                u, d = at((y + k + STEPS) * LANES), at((y - k + 1) * LANES)
                if not down:
                    _look(best, b, tile, u, c0, c1, c2, c3)
                elif not up:
                    _look(best, b, tile, d, c3, c2, c1, c0)
                else:
                    _look_both(best, b, tile, u, d, c0, c1, c2, c3)
                top = _most(best, b, lanes)
            k += STEPS
    return True


@numba.njit(**OPTIONS)
def _bound(tile: Any, bounds: Any) -> Any:
    """Fill the bounds and the rows that repeat the ends; whether anything is not 0."""
    n, lanes = bounds.shape[1], at(tile.shape[0] // (bounds.shape[1] + 2 * STEPS))
    for r in range(STEPS):
        for i in range(LANES):
            tile[r * LANES + i] = tile[STEPS * LANES + i]
            tile[(n + STEPS + r) * LANES + i] = tile[(n + STEPS - 1) * LANES + i]
    found = False
    least = np.int64(MOST)
    for r in range(n):
        o = at((r + STEPS) * LANES)
        low, high = _least(tile, o, lanes), _most(tile, o, lanes)
        least = min(least, low)
        bounds[_LOW, r], bounds[_HIGH, r], bounds[_BELOW, r] = low, high, least
        found |= high > 0
    least = np.int64(MOST)
    for r in range(n - 1, -1, -1):
        least = min(least, bounds[_LOW, r])
        bounds[_ABOVE, r] = least
        near = bounds[_LOW, r]
        for j in range(r + 1, min(r + STEPS, n)):
            near = min(near, bounds[_LOW, j])
        bounds[_NEXT, r] = near
    return found


@numba.njit(**OPTIONS)
def _less(a: Any, b: Any) -> Any:
    return a if a < b else b


@numba.njit(**OPTIONS)
def _far(a: Any, c: Any) -> Any:
    """A sum that stays at `MOST`."""
    return np.uint16(_less(a, np.uint16(_MOST - c)) + c)


@numba.njit(**OPTIONS)
def _look(best: Any, b: Any, tile: Any, o: Any, c0: Any, c1: Any, c2: Any, c3: Any) -> None:
    """Include four rows on one side."""
    for i in range(at(LANES)):
        v0, v1 = _far(tile[o + i], c0), _far(tile[o + i + at(LANES)], c1)
        v2, v3 = _far(tile[o + i + at(2 * LANES)], c2), _far(tile[o + i + at(3 * LANES)], c3)
        best[b + i] = _less(best[b + i], _less(_less(v0, v1), _less(v2, v3)))


@numba.njit(**OPTIONS)
def _look_both(best: Any, b: Any, tile: Any, u: Any, d: Any, c0: Any, c1: Any, c2: Any, c3: Any) -> None:
    """Include four rows on each side."""
    for i in range(at(LANES)):
        v0 = _far(_less(tile[u + i], tile[d + i + at(3 * LANES)]), c0)
        v1 = _far(_less(tile[u + i + at(LANES)], tile[d + i + at(2 * LANES)]), c1)
        v2 = _far(_less(tile[u + i + at(2 * LANES)], tile[d + i + at(LANES)]), c2)
        v3 = _far(_less(tile[u + i + at(3 * LANES)], tile[d + i]), c3)
        best[b + i] = _less(best[b + i], _less(_less(v0, v1), _less(v2, v3)))


# Of a number of numbers that it does not know LLVM makes a vector's extreme; a loop of 64 it unrolls.


@numba.njit(**OPTIONS)
def _most(x: Any, o: Any, n: Any) -> Any:
    top = _ZERO
    for i in range(n):
        value = x[o + i]
        top = value if value > top else top
    return np.int64(top)


@numba.njit(**OPTIONS)
def _least(x: Any, o: Any, n: Any) -> Any:
    low = _MOST
    for i in range(n):
        value = x[o + i]
        low = value if value < low else low
    return np.int64(low)
