"""Sums over balls around the voxels of a plane, compiled, some rows at a time.

A ball is a pile of discs across the last axis (`medloss.boundary.balls.Discs`), each of which contains the next smaller
one. Planes at equal distances in front of and behind a plane are added up first (`fold`). In the folded planes the
discs around four rows grow point by point, in vector registers; those that a ball needs, shifted along the row, are
added up afterwards.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numba
import numpy as np
import numpy.typing as npt

from medloss.boundary.balls import discs
from medloss.kernels.numba.compilation import EXACT
from medloss.kernels.numba.vector_ops import at, fill, put, put_pair
from medloss.kernels.numba.vectors import LANES, load, repeated, store, widened, zeros

Array: TypeAlias = npt.NDArray[Any]

#: Rows whose discs grow at a time: as many as vector registers hold, so that rows which they share are read once.
ROWS = 4
#: Sizes of discs that are added to balls at a time: they stay in the first cache.
DISCS = 16


@dataclass(frozen=True)
class Layout:
    """Where numbers lie in buffers. Rows are filled up to whole vectors.

    Attributes:
        reach: the largest ball's, per axis, in voxels.
        pitch: numbers per row.
        rows: per folded plane: the plane's, as many before and behind it as balls reach, and those that fill up.
        margin: numbers in front of a row and behind it, to which balls reach along it.
        width: of a row with its margins.
        across: points and ends of the discs, and taps of the balls, as in `medloss.boundary.balls.Discs`.
        forward: `cut` of `sum_balls`; discs from the smallest to the largest. `low`, `high`: offsets in folded planes
            of two rows at equal distances; `pair_ends`: up to which of them a disc goes; `middle`, `middle_ends`: the
            same for single rows. `tap_discs`, `tap_heights`: a tap's disc, as an offset, and its distance along the
            row, in the order of parts of `DISCS` discs and radii; `tap_ends`, `[part, radius]`: up to which they go.
        backward: `cut` of `spread_gradients`; discs from the largest to the smallest. `tap_rows`, `tap_heights`: a
            tap's radius, as an offset, and its distance along the row; `tap_sums`: where the sum of so many numbers at
            a row's end lies; `tap_ends`: up to which a disc's go. `blocks`, `[plane, distance]`: the disc (offset)
            that reaches a row from one at a distance of -(reach + ROWS - 1) or more; `heights`: a plane's farthest row.
        sizes: voxels per ball.
    """

    reach: tuple[int, int, int]
    pitch: int
    rows: int
    margin: int
    width: int
    across: tuple[Array, ...]
    forward: tuple[Array, ...]
    backward: tuple[Array, ...]
    sizes: Array


@lru_cache(maxsize=32)
def layout(radii: tuple[float, ...], spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> Layout:
    """The layout for balls of some radii in mm."""
    plan = discs(radii, spacing)
    points, ends, taps, tap_ends = (x.numpy() for x in (plan.points, plan.ends, plan.taps, plan.tap_ends))
    far = plan.reach
    pitch, margin = _whole(shape[2]), _whole(far[2])
    rows, width = shape[1] + 2 * far[1] + ROWS - 1, pitch + 2 * margin
    # Offsets of a disc's points in the folded planes: two rows at equal distances, or the row itself.
    paired = points[:, 1] > 0
    plane = points[:, 0] * (rows * pitch)
    low, high = ((plane + sign * points[:, 1] * LANES)[paired] for sign in (-1, 1))
    middle = plane[~paired]
    pair_ends, middle_ends = (np.cumsum(kind)[ends - 1] for kind in (paired, ~paired))
    # The discs of a few sizes, by radius.
    disc = np.repeat(np.arange(len(ends)), np.diff(tap_ends, prepend=0))
    part = disc // DISCS
    order = np.lexsort((taps[:, 0], part))
    parts = np.zeros((-(-len(ends) // DISCS), len(radii)), np.int64)
    np.add.at(parts, (part, taps[:, 0]), 1)
    part_ends = np.cumsum(parts).reshape(parts.shape)
    forward = (
        low, high, pair_ends, middle, middle_ends, (disc % DISCS)[order] * ROWS * width, taps[order, 1], part_ends,
    )  # fmt: skip
    # Backwards, from the largest disc to the smallest; and per folded plane and distance from a row, the disc that
    # reaches just as far: a block of rows, or one of zeros.
    back = np.argsort(-disc, kind="stable")
    back_ends = np.cumsum(np.bincount(disc)[::-1])
    heights = np.zeros(far[0] + 1, np.int64)
    np.maximum.at(heights, points[:, 0], points[:, 1])
    across = np.abs(np.arange(-far[1] - ROWS + 1, far[1] + ROWS))
    smallest = np.full((far[0] + 1, far[1] + ROWS), len(ends))
    smallest[points[:, 0], points[:, 1]] = len(ends) - 1 - np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    blocks = smallest[:, across] * ROWS * LANES
    ends_of_rows = taps[back, 0] * (far[2] + 1) + taps[back, 1]
    backward = (taps[back, 0] * ROWS * width, taps[back, 1], ends_of_rows, back_ends, blocks, heights)
    return Layout(
        far, pitch, rows, margin, width, (points, ends, taps, tap_ends), tuple(map(_offsets, forward)),
        tuple(map(_offsets, backward)), plan.sizes.numpy(),
    )  # fmt: skip


def _whole(n: int) -> int:
    return -(-n // LANES) * LANES


def _offsets(numbers: Array) -> Array:
    # Those that reach backwards wrap around, and do so again when they are added.
    return np.ascontiguousarray(numbers.astype(np.int64)).view(np.uint64)


def aligned(count: int, kind: Any) -> Array:
    """Zeros that begin with a line of the cache: else every vector of 64 bytes lies in two of them."""
    size = count * np.dtype(kind).itemsize
    room = np.zeros(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(kind)


def ball_buffers(plan: Layout, folded: Any, kind: Any) -> tuple[Array, Array, Array]:
    """What a thread needs to sum up balls: folded planes in one type; discs, and balls, in another."""
    return (
        aligned((plan.reach[0] + 1) * plan.rows * plan.pitch, folded),
        aligned(DISCS * ROWS * plan.width, kind),
        aligned(len(plan.sizes) * ROWS * plan.pitch, kind),
    )


def gradient_buffers(plan: Layout, kind: Any) -> tuple[Array, Array]:
    """What a thread needs to spread gradients: discs and a block of zeros; folded planes."""
    discs_and_zeros = (len(plan.forward[2]) + 1) * ROWS * LANES
    return aligned(discs_and_zeros, kind), aligned((plan.reach[0] + 1) * plan.rows * plan.pitch, kind)


@numba.njit(**EXACT)
def fold(x: Any, shape: Any, far: Any, rows: Any, pitch: Any, i: Any, folded: Any) -> None:
    """Sums of planes at equal distances in front of and behind plane i.

    They are as [distance][vector of a row][row, border rows repeated][number]: what is read together lies together.
    """
    plane = shape[1] * shape[2]
    for d in range(far[0] + 1):
        for lane in range(0, shape[2], LANES):
            n = at(min(LANES, shape[2] - lane))
            to = start = at(d * rows * pitch + lane * rows + far[1] * LANES)
            front, behind = at(max(i - d, 0) * plane + lane), at(min(i + d, shape[0] - 1) * plane + lane)
            for _ in range(shape[1]):
                if n == at(LANES) and d > 0:
                    store(folded, to, load(x, front) + load(x, behind))
                elif d > 0:
                    put_pair(folded, to, x, front, behind, n)
                else:
                    put(folded, to, x, front, n)
                to += at(LANES)
                front += at(shape[2])
                behind += at(shape[2])
            first, last = load(folded, start), load(folded, to - at(LANES))
            for j in range(far[1]):
                store(folded, start - at((j + 1) * LANES), first)
                store(folded, to + at(j * LANES), last)


@numba.njit(**EXACT)
def sum_balls(
    folded: Any, j: Any, n: Any, far: Any, rows: Any, pitch: Any, margin: Any, cut: Any, grown: Any, balls: Any
) -> None:
    """Sums over balls around the voxels of `ROWS` rows of a plane from row j on: `balls`, [radius][row][pitch].

    Args:
        folded: `fold`'s.
        j: the first row.
        n: voxels per row.
        far: the largest ball's reach.
        rows: `Layout.rows`.
        pitch: `Layout.pitch`.
        margin: `Layout.margin`.
        cut: `Layout.forward`.
        grown: room for the discs.
        balls: the result.
    """
    low, high, pair_ends, middle, middle_ends, tap_discs, tap_heights, tap_ends = cut
    width = pitch + 2 * margin
    fill(balls, at(0), balls.dtype.type(0), at(len(balls)))
    for part in range(len(tap_ends)):
        first, end = part * DISCS, min((part + 1) * DISCS, len(pair_ends))
        _grow(
            folded,
            (far[1] + j) * LANES,
            n,
            rows,
            low,
            high,
            pair_ends,
            middle,
            middle_ends,
            first,
            end,
            grown,
            margin,
            width,
        )
        if margin > 0:
            for row in range((end - first) * ROWS):
                here = at(row * width + margin)
                left, right = repeated(grown, here), repeated(grown, here + at(n - 1))
                for lane in range(0, margin, LANES):
                    store(grown, here - at(margin) + at(lane), left)
                    store(grown, here + at(n) + at(lane), right)
        for s in range(ROWS):
            for lane in range(0, n, LANES):
                here, to = at(s * width + margin + lane), at(s * pitch + lane)
                tap = tap_ends[part - 1, -1] if part > 0 else at(0)
                for r in range(tap_ends.shape[1]):
                    ball = load(balls, to)
                    while tap < tap_ends[part, r]:
                        disc, height = here + tap_discs[tap], tap_heights[tap]
                        if height == 0:
                            ball = ball + load(grown, disc)
                        else:
                            ball = ball + (load(grown, disc - height) + load(grown, disc + height))
                        tap += at(1)
                    store(balls, to, ball)
                    to += at(ROWS * pitch)


@numba.njit(**EXACT)
def _grow(
    folded: Any,
    start: Any,
    n: Any,
    rows: Any,
    low: Any,
    high: Any,
    pair_ends: Any,
    middle: Any,
    middle_ends: Any,
    first: Any,
    end: Any,
    grown: Any,
    margin: Any,
    width: Any,
) -> None:
    """Discs of some sizes around the voxels of four rows, [disc][row][width]; they grow from the last one there."""
    second, third, fourth = at(LANES), at(2 * LANES), at(3 * LANES)
    for lane in range(0, n, LANES):
        here, to = at(start + lane * rows), at(margin + lane)
        a = b = c = d = zeros(grown)
        pair, single = at(0), at(0)
        if first > 0:
            pair, single = pair_ends[first - 1], middle_ends[first - 1]
            last = to + at((DISCS - 1) * ROWS * width)
            a, b = load(grown, last), load(grown, last + at(width))
            c, d = load(grown, last + at(2 * width)), load(grown, last + at(3 * width))
        for number in range(first, end):
            while pair < pair_ends[number]:
                p, q = here + low[pair], here + high[pair]
                a = a + widened(load(folded, p) + load(folded, q), grown)
                b = b + widened(load(folded, p + second) + load(folded, q + second), grown)
                c = c + widened(load(folded, p + third) + load(folded, q + third), grown)
                d = d + widened(load(folded, p + fourth) + load(folded, q + fourth), grown)
                pair += at(1)
            while single < middle_ends[number]:
                p = here + middle[single]
                a = a + widened(load(folded, p), grown)
                b = b + widened(load(folded, p + second), grown)
                c = c + widened(load(folded, p + third), grown)
                d = d + widened(load(folded, p + fourth), grown)
                single += at(1)
            store(grown, to, a)
            store(grown, to + at(width), b)
            store(grown, to + at(2 * width), c)
            store(grown, to + at(3 * width), d)
            to += at(ROWS * width)
