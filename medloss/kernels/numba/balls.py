"""Errors that lie deep on the wrong side, by sums over balls, compiled: no map per radius, no Fourier transform."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from medloss.boundary.balls import discs
from medloss.kernels.numba.ball_bounds import bound_rows, can_be_half_full
from medloss.kernels.numba.ball_gradients import spread_gradients
from medloss.kernels.numba.compilation import EXACT, compiled
from medloss.kernels.numba.discs import ROWS, Array, ball_buffers, fold, gradient_buffers, layout, sum_balls
from medloss.kernels.numba.vector_ops import at, fill, row_sum, share_out
from medloss.kernels.numba.vectors import LANES
from medloss.kernels.thread_pool import POOL

#: Planes per task of a thread.
_PLANES = 8
#: Maps below which threads share each of them: a row has few vectors, more threads than that wait.
_FEW_MAPS = 4
#: Points of the largest disc's quarter beyond which Fourier transforms are faster.
_MANY_POINTS = 6000


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
    batch, classes = p.shape[:2]
    kernel = _Kernel(p.detach().numpy(), y.numpy(), radii, weights, spacing, gradients)
    maps, threads = batch * classes, torch.get_num_threads()
    # Not a tensor: inference mode is the calling thread's, and other threads must not write to its tensors.
    sums = np.empty((batch, classes), kernel.real)
    # Labelled voxels take most of the time: so that threads end at once, maps with many of them come first.
    order = sorted(np.ndindex(batch, classes), key=lambda place: -np.count_nonzero(kernel.y[place]))

    def whole_maps(numbers: Iterable[int]) -> None:
        buffers = kernel.buffers()
        for number in numbers:
            case = kernel.map_at(order[number])
            kernel.add_values(case, 0, kernel.shape[0], buffers)
            kernel.add_gradients(case, 0, kernel.shape[2], buffers)
            sums[order[number]] = case.sums.sum()

    if maps >= min(threads, _FEW_MAPS):
        POOL.run(whole_maps, maps, threads)
        return torch.from_numpy(sums)
    for place in order:
        sums[place] = _shared(kernel, kernel.map_at(place), threads)
    return torch.from_numpy(sums)


def _shared(kernel: "_Kernel", case: "_Map", threads: int) -> float:
    """The sum of a map on which several threads work."""
    share_out(kernel.shape[0], _PLANES, lambda b, e: kernel.add_values(case, b, e, kernel.buffers()))
    # Lanes are independent of each other, everything else overlaps.
    lanes = -(-kernel.shape[2] // LANES // threads) * LANES
    share_out(kernel.shape[2], lanes, lambda b, e: kernel.add_gradients(case, b, e, kernel.buffers()))
    return float(case.sums.sum())


@dataclass
class _Map:
    """One class of one item.

    Attributes:
        p: probabilities.
        y: label, uint8.
        rare: the rarer of the label's two sides, and `inverted`, whether it is where there is no label.
        rare_rows: whether a row holds any of it.
        bounds: of p, by row (`bound_rows`).
        sides: per 8 radii and voxel, bits of the balls that are more than half full, and of those that are less.
        sums: a value per plane.
        out: gradient, or nothing.
    """

    p: Array
    y: Array
    rare: Array
    inverted: bool
    rare_rows: Array
    bounds: Array
    sides: Array
    sums: Array
    out: Array


class _Kernel:
    """What all maps have in common."""

    def __init__(
        self,
        p: Array,
        y: Array,
        radii: Sequence[float],
        weights: Sequence[float],
        spacing: Sequence[float],
        gradients: Tensor | None,
    ) -> None:
        self._p, self.y, self.real = p, y, p.dtype.type
        self._gradients = None if gradients is None else gradients.numpy()
        planes, *plane = (1, *p.shape[2:]) if p.ndim == 4 else p.shape[2:]
        self.shape = (planes, plane[0], plane[1])
        self._plan = layout(tuple(radii), _three(spacing), self.shape)
        self._sizes, self._weights = self._plan.sizes.astype(self.real), np.array(weights, self.real)
        self._places = (self._plan.rows, self._plan.pitch, self._plan.margin)

    def map_at(self, place: tuple[int, ...]) -> _Map:
        p, y = self._p[place].reshape(-1), self.y[place].reshape(-1).view(np.uint8)
        out = np.empty(0, self.real) if self._gradients is None else self._gradients[place].reshape(-1)
        inverted = 2 * np.count_nonzero(y) > y.size
        rare = y ^ 1 if inverted else y
        rare_rows = rare.reshape(-1, self.shape[2]).any(1)
        bounds = np.empty(self.shape[0] * (self.shape[1] + 2 * self._plan.reach[1]), self.real)
        bound_rows(p, self.shape, self._plan.reach[1], bounds)
        bits = np.zeros(-(-len(self._sizes) // 8) * 2 * out.size, np.uint8)
        return _Map(p, y, rare, inverted, rare_rows, bounds, bits, np.zeros(self.shape[0]), out)

    def buffers(self) -> tuple[tuple[Array, ...], ...]:
        """What one thread needs."""
        # A label's voxels in a ball are counted in the smallest integers that hold them.
        count = np.uint16 if int(self._plan.sizes.max()) < 1 << 16 else np.uint32
        kinds = ball_buffers(self._plan, np.uint8, count), ball_buffers(self._plan, self.real, self.real)
        return *kinds, () if self._gradients is None else gradient_buffers(self._plan, self.real)

    def add_values(self, case: _Map, begin: int, end: int, buffers: tuple[tuple[Array, ...], ...]) -> None:
        """The sums of some planes, and gradients without what balls pass on."""
        _values(
            case.p, case.y, case.rare, case.inverted, case.bounds, case.rare_rows, self.shape, self._plan.reach,
            self._places, self._plan.across, self._plan.forward, begin, end, *buffers[:2], self._sizes,
            self._weights, case.sums, case.sides, case.out,
        )  # fmt: skip

    def add_gradients(self, case: _Map, begin: int, end: int, buffers: tuple[tuple[Array, ...], ...]) -> None:
        """What balls pass on to the gradients of some lanes."""
        if len(case.out) > 0:
            spread_gradients(
                case.p, case.y, self.shape, self._plan.reach, self._places, self._plan.backward, begin, end,
                self._sizes, self._weights, case.sides, *buffers[2], case.out,
            )  # fmt: skip


def _three(spacing: Sequence[float]) -> tuple[float, float, float]:
    # A 2D image is a plane: nothing reaches across it.
    *across, middle, last = spacing
    return (across[0] if across else 1e300, middle, last)


@numba.njit(**EXACT)
def _weigh(balls: Any, o: Any, size: Any, weight: Any, n: Any, full: Any, empty: Any, e: Any) -> None:
    """Add how full, and how empty, balls are beyond a half."""
    real = full.dtype.type
    half, scale = real(0.5) * size, weight / (real(0.5) * size)
    for k in range(n):
        beyond = real(balls[o + k]) - half
        full[e + k] += beyond * scale if beyond > 0 else real(0)
        empty[e + k] -= real(0) if beyond >= 0 else beyond * scale


@numba.njit(**EXACT)
def _mark(balls: Any, o: Any, size: Any, bit: Any, n: Any, sides: Any, base: Any, other: Any) -> None:
    """Record on which side of a half a ball's share lies; on neither if it is a half."""
    half = balls.dtype.type(0.5) * size
    for k in range(n):
        sides[base + k] |= bit if balls[o + k] > half else np.uint8(0)
        sides[other + k] |= bit if balls[o + k] < half else np.uint8(0)


@numba.njit(**EXACT)
def _reached(occupied: Any, shape: Any, far: Any, i: Any, out: Any) -> None:
    """Per row, whether one of a plane's neighbours within the largest ball's reach is occupied in this row."""
    for j in range(shape[1]):
        found = False
        for z in range(max(i - far[0], 0), min(i + far[0] + 1, shape[0])):
            found |= occupied[z * shape[1] + j]
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
    rare: Any,
    inverted: Any,
    bounds: Any,
    rare_rows: Any,
    shape: Any,
    far: Any,
    places: Any,
    across: Any,
    cut: Any,
    begin: Any,
    end: Any,
    label_buffers: Any,
    buffers: Any,
    sizes: Any,
    weights: Any,
    sums: Any,
    sides: Any,
    out: Any,
) -> None:
    """Each plane's sum; the gradient without what balls pass on; and the balls' sides."""
    plane, row = shape[1] * shape[2], shape[2]
    rows, pitch, margin = places
    real = p.dtype.type
    two, length, m = real(2), ROWS * row, at(row)
    full, empty, value = np.empty(length, p.dtype), np.empty(length, p.dtype), np.empty(length, p.dtype)
    fillable, reached = np.empty(shape[1], np.bool_), np.empty(shape[1], np.bool_)
    disc, balls = np.empty(shape[1], p.dtype), np.empty(len(sizes) * shape[1], p.dtype)
    for i in range(begin, end):
        _reached(rare_rows, shape, far, i, reached)
        bounded = folded = rare_folded = False
        for j in range(0, shape[1], ROWS):
            strip = min(ROWS, shape[1] - j)
            n, zero, base = at(strip * row), at(0), at(i * plane + j * row)
            fill(full, zero, real(0), n)
            fill(empty, zero, real(0), n)
            if reached[max(j - far[1], 0) : min(j + strip + far[1], shape[1])].any():
                if not rare_folded:
                    fold(rare, shape, far, rows, pitch, i, label_buffers[0])
                    rare_folded = True
                sum_balls(label_buffers[0], j, row, far, rows, pitch, margin, cut, label_buffers[1], label_buffers[2])
            else:
                fill(label_buffers[2], zero, label_buffers[2].dtype.type(0), at(len(label_buffers[2])))
            # Over-segmentation weighs more in balls full of p or empty of y; under-segmentation the other way round.
            for r in range(len(sizes)):
                for s in range(strip):
                    ball = at((r * ROWS + s) * pitch)
                    if inverted:
                        _weigh(label_buffers[2], ball, sizes[r], weights[r], m, full, empty, at(s * row))
                    else:
                        _weigh(label_buffers[2], ball, sizes[r], weights[r], m, empty, full, at(s * row))
            # Without a label, only balls more than half full of p count.
            needed = _any(y, base, n)
            if not needed:
                if not bounded:
                    can_be_half_full(bounds, shape, far, across, i, sizes, disc, balls, fillable)
                    bounded = True
                needed = fillable[j : j + strip].any()
            if needed:
                if not folded:
                    fold(p, shape, far, rows, pitch, i, buffers[0])
                    folded = True
                sum_balls(buffers[0], j, row, far, rows, pitch, margin, cut, buffers[1], buffers[2])
                for r in range(len(sizes)):
                    bit = np.uint8(1 << (r % 8))
                    for s in range(strip):
                        ball = at((r * ROWS + s) * pitch)
                        _weigh(buffers[2], ball, sizes[r], weights[r], m, full, empty, at(s * row))
                        if len(out) > 0:
                            side = base + at(r // 8 * 2 * p.size + s * row)
                            _mark(buffers[2], ball, sizes[r], bit, m, sides, side, side + at(p.size))
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
