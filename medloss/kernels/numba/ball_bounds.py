"""How full balls around the voxels of a row can be at most, as if each row held its largest value everywhere.

Where that is little, sums over balls need not be computed.
"""

from typing import Any

import numba
import numpy as np

from medloss.kernels.numba.compilation import EXACT, compiled
from medloss.kernels.numba.vector_ops import add, add_pair, at, fill


@compiled
def bound_rows(p: Any, shape: Any, far: Any, out: Any) -> None:
    """What no number of a row exceeds, one of four values; [plane][row, border rows repeated]."""
    real = out.dtype.type
    some, much, one = real(0.0625), real(0.4375), real(1)
    stride = shape[1] + 2 * far
    for i in range(shape[0]):
        for j in range(shape[1]):
            base = at((i * shape[1] + j) * shape[2])
            above_some = above_much = above_one = False
            for k in range(at(shape[2])):
                # NaN is above all.
                above_some |= not (p[base + k] <= some)
                above_much |= not (p[base + k] <= much)
                above_one |= not (p[base + k] <= one)
            bound = real(np.inf) if above_one else one if above_much else much if above_some else some
            first = i * stride + far
            out[at(first + j)] = bound
            for border in range(far if j == 0 else 0):
                out[at(first - 1 - border)] = bound
            for border in range(far if j == shape[1] - 1 else 0):
                out[at(first + shape[1] + border)] = bound


@numba.njit(**EXACT)
def can_be_half_full(
    bounds: Any, shape: Any, far: Any, across: Any, i: Any, sizes: Any, disc: Any, balls: Any, out: Any
) -> None:
    """Per row of plane i, whether a ball around one of its voxels can be more than half full."""
    points, ends, taps, tap_ends = across
    n, stride, middle, zero = at(shape[1]), shape[1] + 2 * far[1], far[1], at(0)
    fill(disc, zero, disc.dtype.type(0), n)
    fill(balls, zero, disc.dtype.type(0), at(len(balls)))
    point = tap = 0
    for number in range(len(ends)):
        while point < ends[number]:
            d, a = points[point, 0], points[point, 1]
            front, behind = max(i - d, 0) * stride + middle, min(i + d, shape[0] - 1) * stride + middle
            if d == 0 and a == 0:
                add(disc, zero, bounds, at(front), n)
            elif d == 0:
                add_pair(disc, zero, bounds, at(front - a), at(front + a), n)
            elif a == 0:
                add_pair(disc, zero, bounds, at(front), at(behind), n)
            else:
                add_pair(disc, zero, bounds, at(front - a), at(front + a), n)
                add_pair(disc, zero, bounds, at(behind - a), at(behind + a), n)
            point += 1
        while tap < tap_ends[number]:
            ball = at(taps[tap, 0] * shape[1])
            if taps[tap, 1] == 0:
                add(balls, ball, disc, zero, n)
            else:
                add_pair(balls, ball, disc, zero, zero, n)
            tap += 1
    # Rounding errors are smaller than a thousandth.
    for j in range(shape[1]):
        out[j] = False
    for r in range(len(sizes)):
        limit = disc.dtype.type(0.4995) * sizes[r]
        for j in range(shape[1]):
            out[j] |= not (balls[r * shape[1] + j] <= limit)
