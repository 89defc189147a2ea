"""Exact Euclidean distances on the CPU, compiled: axis by axis, both signs in one field, in the memory of the result.

A voxel's value is the squared distance to the other side's nearest voxel, negative inside: of the two fields that a
signed distance needs, that of the voxel's side is 0, so the sign shows which of the two the value belongs to.

The last axis, whose voxels are adjacent, takes two passes. Each further axis takes, for voxel i, the least
f(j) + s^2 (i - j)^2 of its line, outwards from i until nothing further out can be less. `LANES` neighbouring lines
form a tile `[voxels of a line, LANES]`, so that each step works on vectors, and few lines far from every border delay
the others.
"""

import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from medloss.kernels.numba.compilation import OPTIONS, compiled
from medloss.kernels.numba.elementary import bits_float, float_bits
from medloss.kernels.numba.vector_ops import share_out
from medloss.kernels.numba.whole_distances import BOTH, INSIDE, OUTSIDE, Volume, find_sides, multiples, write_distances
from medloss.kernels.numba.whole_distances import parts as _parts

LANES = 64
#: Steps outwards between two looks at whether a row is done, and rows that repeat a tile's first and last one.
STEPS = 4

#: More steps than an axis has.
_FAR = 1 << 30

#: Voxels per task of a thread.
_VOXELS = 1 << 16
#: Without NaN or signed zeros a minimum is one instruction.
_OPTIONS = OPTIONS | {"fastmath": {"nnan", "nsz", "contract"}}

_ZERO, _ONE, _INF = np.float32(0), np.float32(1), np.float32(np.inf)
#: The rows of a tile's bounds: the least distance of a side in the rows up to this one, from it on, in it,
#: and in the four from it on; and 0.
_BELOW, _ABOVE, _ROW, _NEXT, _NONE, _BOUNDS = 0, 2, 4, 6, 8, 9


def signed_distances(masks: Tensor, spacings: Sequence[Sequence[float]]) -> Tensor:
    """Each voxel's distance in mm to the other side's nearest voxel, negative inside; 0 if a side is empty.

    Args:
        masks: `[B, C, *spatial]`, bool, 2D or 3D.
        spacings: mm, in the order of the axes, one per item.

    Returns:
        float32, the shape of `masks`.
    """
    return _distances(masks, spacings, BOTH)


def inside_distances(masks: Tensor, spacings: Sequence[Sequence[float]]) -> Tensor:
    """Each voxel's distance in mm to the nearest voxel outside its mask; 0 outside, and if a side is empty."""
    return _distances(masks, spacings, INSIDE)


def outside_distances(masks: Tensor, spacings: Sequence[Sequence[float]]) -> Tensor:
    """Each voxel's distance in mm to its mask's nearest voxel; 0 inside, and if a side is empty."""
    return _distances(masks, spacings, OUTSIDE)


def squared_distances(masks: Tensor, spacings: Sequence[Sequence[float]]) -> Tensor:
    """The squares of `signed_distances`, in mm^2."""
    return _distances(masks, spacings, BOTH, root=False)


def label_squares(
    labels: Tensor,
    first: int,
    classes: int,
    spacings: Sequence[Sequence[float]],
    base: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The squared distances of the classes `first` to `classes - 1` to their borders, and the squares of other numbers.

    Args:
        labels: `[B, 1, *spatial]`, int16, 2D or 3D.
        first: of the classes.
        classes: C.
        spacings: mm, one tuple per item.
        base: numbers whose squares are added, `[B, C - first, *spatial]`, of the type of the result; None for 0.
        dtype: float32 or float64.
    """
    out = torch.empty(len(labels), classes - first, *labels.shape[2:], dtype=dtype, device="cpu")
    given = None if base is None else base.detach()
    whole = []
    for item, spacing in enumerate(spacings):
        steps = multiples(spacing, labels.shape[2:])
        marks = _three_axes(labels[item, 0].contiguous())
        for number in range(classes - first):
            results = out[item, number]
            added = None if given is None else given[item, number].contiguous()
            label = first + number
            if not all(find_sides(marks.reshape(-1), np.int16(label))):
                results.copy_(added.square()) if added is not None else results.zero_()
            elif steps is not None:
                numbers = None if added is None else _three_axes(added)
                whole.append(Volume(marks, label, steps, spacing, _three_axes(results), numbers))
            else:
                results.copy_(squared_distances(labels[item : item + 1] == label, [spacing])[0, 0])
                if added is not None:
                    results.addcmul_(added, added)
    write_distances(whole, BOTH, root=False)
    return out


def _three_axes(maps: Tensor) -> Any:
    """An image is a volume whose planes are its rows."""
    return (maps if maps.ndim == 3 else maps.unsqueeze(1)).numpy()


def _distances(masks: Tensor, spacings: Sequence[Sequence[float]], side: int, *, root: bool = True) -> Tensor:
    out = torch.empty(masks.shape, dtype=torch.float32, device="cpu")
    if not out.numel():
        return out
    # A 2D image is a volume whose planes are its rows.
    shape = masks.shape[2:]
    planes, rows, row = shape if len(shape) == 3 else (shape[0], 1, shape[1])
    columns = rows * row
    volumes = out.view(-1, planes, rows, row).numpy()
    marks = masks.contiguous().view(volumes.shape).view(torch.uint8).numpy()
    todo, whole = [], []
    for volume, flat in enumerate(marks.reshape(len(marks), -1)):
        spacing = spacings[volume // masks.shape[1]]
        if flat.min() == flat.max():
            volumes[volume] = 0
        elif (steps := multiples(spacing, shape)) is not None:
            whole.append(Volume(marks[volume], 1, steps, spacing, volumes[volume]))
        else:
            todo.append(volume)
    write_distances(whole, side, root)
    if len(todo) == 0:
        return out
    # float64 up to here: each square is rounded once.
    squares = np.array([[s * s for s in spacings[volume // masks.shape[1]]] for volume in todo]).astype(np.float32)

    def within(begin: int, end: int) -> None:
        for i, start, stop in _parts(begin, end, planes):
            _within(marks[todo[i]], volumes[todo[i]], squares[i, -1], squares[i, 1], side, start, stop)

    share_out(len(todo) * planes, max(1, _VOXELS // columns), within)

    def between(begin: int, end: int) -> None:
        for i, start, stop in _parts(begin, end, columns):
            _between(volumes[todo[i]].reshape(planes, columns), squares[i, 0], side, root, start, stop)

    share_out(len(todo) * columns, max(1, _VOXELS // (planes * LANES)) * LANES, between)
    return out


@compiled
def _within(mask: Any, field: Any, row_square: Any, square: Any, side: Any, begin: Any, end: Any) -> None:
    """Squared distances within planes of `[planes, rows, row]`; in a plane of one side, infinite."""
    rows, row = field.shape[1], field.shape[2]
    steps = np.empty(row, np.int32)
    tile, best, bounds = _buffers(rows)
    for z in range(begin, end):
        plane = field[z]
        pure = True
        for y in range(rows):
            pure &= _scan(mask[z, y], row_square, side, steps, plane[y]) & (mask[z, y, 0] == mask[z, 0, 0])
        if pure | (rows == 1):
            continue
        for x in range(0, row, LANES):
            # Lines beyond the last one repeat it.
            found = min(LANES, row - x)
            _load(plane, x, found, tile)
            _sweep(tile, best, bounds, square)
            for y in range(rows):
                _keep_sign(tile[(y + STEPS) * LANES :], best[y * LANES :], plane[y, x : x + found])


@numba.njit(**_OPTIONS)
def _scan(mask: Any, square: Any, side: Any, steps: Any, out: Any) -> Any:
    """The squared distances along a row; whether it is all of one side, and then they are infinite."""
    n = mask.shape[0]
    first, different = mask[0], np.uint8(0)
    for x in range(n):
        different |= mask[x] ^ first
    # A side that is not wanted is 0 throughout, and the other side's voxels measure to it.
    inside = -_ONE if side != OUTSIDE else _ZERO
    outside = _ONE if side != INSIDE else _ZERO
    if different == 0:
        factor = outside if first == 0 else inside
        _fill(out, factor * _INF if factor != _ZERO else _ZERO)
        return True
    count = np.int32(_FAR)
    steps[0] = count
    for x in range(1, n):
        count = np.int32((count if mask[x] == mask[x - 1] else np.int32(0)) + np.int32(1))
        steps[x] = count
    count = np.int32(_FAR)
    for x in range(n - 2, -1, -1):
        count = np.int32((count if mask[x] == mask[x + 1] else np.int32(0)) + np.int32(1))
        steps[x] = min(steps[x], count)
    for x in range(n):
        distance = np.float32(steps[x])
        out[x] = distance * distance * square * (outside if mask[x] == 0 else inside)
    return False


@numba.njit(**_OPTIONS)
def _fill(row: Any, value: Any) -> None:
    for i in range(row.shape[0]):
        row[i] = value


@numba.njit(**_OPTIONS)
def _load(rows: Any, x: Any, found: Any, tile: Any) -> None:
    for y in range(rows.shape[0]):
        to, source = tile[(y + STEPS) * LANES : (y + STEPS + 1) * LANES], rows[y, x : x + found]
        if found == LANES:
            for i in range(LANES):
                to[i] = source[i]
        else:
            for i in range(LANES):
                to[i] = source[min(i, found - 1)]


@numba.njit(**_OPTIONS)
def _keep_sign(before: Any, best: Any, out: Any) -> None:
    for i in range(out.shape[0]):
        out[i] = best[i] if before[i] > _ZERO else -best[i]


@compiled
def _between(field: Any, square: Any, side: Any, root: Any, begin: Any, end: Any) -> None:
    """The lines along the first axis of `[planes, columns]`, for a range of columns, and the root if requested."""
    n = field.shape[0]
    tile, best, bounds = _buffers(n)
    for x in range(begin, end, LANES):
        found = min(LANES, end - x)
        _load(field, x, found, tile)
        _sweep(tile, best, bounds, square)
        for z in range(n):
            values, out = best[z * LANES :], field[z, x : x + found]
            if not root:
                for i in range(found):
                    out[i] = values[i]
                continue
            for i in range(found):
                out[i] = np.float32(math.sqrt(values[i]))
            if side == BOTH:
                _keep_sign(tile[(z + STEPS) * LANES :], out, out)


@numba.njit(**_OPTIONS)
def _buffers(n: Any) -> Any:
    tile = np.empty((n + 2 * STEPS) * LANES, np.float32)
    return tile, np.empty(n * LANES, np.float32), np.zeros((_BOUNDS, n), np.float32)


@numba.njit(**_OPTIONS)
def _sweep(tile: Any, best: Any, bounds: Any, square: Any) -> None:
    """The least f(j) + s^2 (i - j)^2 for each row i of a tile."""
    n = bounds.shape[1]
    _repeat_ends(tile, n)
    first, last = _bound(tile, bounds, n)
    sign = np.empty(LANES, np.float32)
    for y in range(n):
        b = best[y * LANES : (y + 1) * LANES]
        top = _begin(tile[(y + STEPS) * LANES : (y + STEPS + 1) * LANES], b, sign)
        kind = 0 if bounds[_ROW, y] > _ZERO else 1 if bounds[_ROW + 1, y] > _ZERO else -1
        below = bounds[_BELOW + kind if kind >= 0 else _NONE]
        above = bounds[_ABOVE + kind if kind >= 0 else _NONE]
        following = bounds[_NEXT + kind if kind >= 0 else _NONE]
        k = max(1, first - y, y - last)
        while True:
            c0 = np.float32(k * k) * square
            up = y + k <= last and c0 + above[min(y + k, n - 1)] < top
            down = y - k >= first and c0 + below[max(y - k, 0)] < top
            if not (up or down):
                break
            up = up and c0 + following[y + k] < top
            down = down and c0 + following[max(y - k - STEPS + 1, 0)] < top
            if not (up or down):
                k += STEPS
                continue
            c1 = np.float32((k + 1) * (k + 1)) * square
            c2 = np.float32((k + 2) * (k + 2)) * square
            c3 = np.float32((k + 3) * (k + 3)) * square
            # A repeated row stands further off than the one it repeats: it is never the least.
            u, d = (y + k + STEPS) * LANES, (y - k + 1) * LANES
            if not down:
                top = _look(b, sign, tile[u : u + STEPS * LANES], c0, c1, c2, c3)
            elif not up:
                top = _look(b, sign, tile[d : d + STEPS * LANES], c3, c2, c1, c0)
            else:
                top = _look_both(b, sign, tile[u : u + STEPS * LANES], tile[d : d + STEPS * LANES], c0, c1, c2, c3)
            k += STEPS


@numba.njit(**_OPTIONS)
def _repeat_ends(tile: Any, n: Any) -> None:
    for r in range(STEPS):
        for i in range(LANES):
            tile[r * LANES + i] = tile[STEPS * LANES + i]
            tile[(n + STEPS + r) * LANES + i] = tile[(n + STEPS - 1) * LANES + i]


@numba.njit(**_OPTIONS)
def _bound(tile: Any, bounds: Any, n: Any) -> Any:
    """The least that rows offer to voxels of either side; the first and the last row that offer anything."""
    for r in range(n):
        low, high = _INF, -_INF
        for i in range(LANES):
            value = tile[(r + STEPS) * LANES + i]
            low = min(low, value)
            high = max(high, value)
        bounds[_ROW, r], bounds[_ROW + 1, r] = max(low, _ZERO), max(-high, _ZERO)
    outside = inside = _INF
    for r in range(n):
        outside, inside = min(outside, bounds[_ROW, r]), min(inside, bounds[_ROW + 1, r])
        bounds[_BELOW, r], bounds[_BELOW + 1, r] = outside, inside
    first, last = 0, n - 1
    if outside > _ZERO or inside > _ZERO:
        # All of one side: rows of infinite distances cannot contribute.
        while first < n and max(bounds[_ROW, first], bounds[_ROW + 1, first]) == _INF:
            first += 1
        while last > first and max(bounds[_ROW, last], bounds[_ROW + 1, last]) == _INF:
            last -= 1
    outside = inside = _INF
    for r in range(n - 1, -1, -1):
        outside, inside = min(outside, bounds[_ROW, r]), min(inside, bounds[_ROW + 1, r])
        bounds[_ABOVE, r], bounds[_ABOVE + 1, r] = outside, inside
    for side in range(2):
        for r in range(n):
            least = bounds[_ROW + side, r]
            for j in range(r + 1, min(r + STEPS, n)):
                least = min(least, bounds[_ROW + side, j])
            bounds[_NEXT + side, r] = least
    return first, last


@numba.njit(**_OPTIONS)
def _begin(row: Any, best: Any, sign: Any) -> Any:
    for i in range(LANES):
        best[i] = abs(row[i])
        sign[i] = _ONE if row[i] > _ZERO else -_ONE
    return _most(best)


@numba.njit(**_OPTIONS)
def _look(best: Any, sign: Any, rows: Any, c0: Any, c1: Any, c2: Any, c3: Any) -> Any:
    """Include four rows on one side; returns the largest remaining distance."""
    for i in range(LANES):
        s = sign[i]
        v0 = max(s * rows[i], _ZERO) + c0
        v1 = max(s * rows[LANES + i], _ZERO) + c1
        v2 = max(s * rows[2 * LANES + i], _ZERO) + c2
        v3 = max(s * rows[3 * LANES + i], _ZERO) + c3
        best[i] = min(best[i], min(min(v0, v1), min(v2, v3)))
    return _most(best)


@numba.njit(**_OPTIONS)
def _look_both(best: Any, sign: Any, up: Any, down: Any, c0: Any, c1: Any, c2: Any, c3: Any) -> Any:
    """Include four rows on each side; returns the largest remaining distance."""
    for i in range(LANES):
        s = sign[i]
        v0 = max(min(s * up[i], s * down[3 * LANES + i]), _ZERO) + c0
        v1 = max(min(s * up[LANES + i], s * down[2 * LANES + i]), _ZERO) + c1
        v2 = max(min(s * up[2 * LANES + i], s * down[LANES + i]), _ZERO) + c2
        v3 = max(min(s * up[3 * LANES + i], s * down[i]), _ZERO) + c3
        best[i] = min(best[i], min(min(v0, v1), min(v2, v3)))
    return _most(best)


@numba.njit(**_OPTIONS)
def _most(numbers: Any) -> Any:
    """The largest of some numbers >= 0."""
    # As whole numbers, whose order their bits have, and of a number of them that LLVM does not know: else it makes no
    # vectors, and a loop of 64 it unrolls.
    top = np.int32(0)
    for i in range(numbers.shape[0]):
        bits = float_bits(numbers[i])
        top = bits if bits > top else top
    return bits_float(top)
