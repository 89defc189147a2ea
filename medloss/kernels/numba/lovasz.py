"""Lovász extensions: errors sorted by buckets of their bits, then within each bucket.

A float's bits have the order of the number if it is not negative. One pass counts how many errors fall into each range
of bits, another writes the voxels' places range by range, and then each range is sorted by itself, in the cache. Beyond
the errors themselves this needs four bytes per voxel of one class. Errors below all those of the class's voxels cost
nothing, and are left out. An error's sign is that of its gradient: minus where the voxel is of the class.
"""

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from medloss.kernels.lovasz_spec import LovaszTerms
from medloss.kernels.numba.blocks import keep_only, load_labels
from medloss.kernels.numba.compilation import OPTIONS, compiled
from medloss.kernels.numba.elementary import float_bits
from medloss.kernels.numba.passes import (
    BLOCK,
    CLASSES,
    FIRST,
    INDEXED,
    KIND,
    MASKED,
    MODE,
    ROW_INVERSE,
    ROW_P,
    ROW_Y,
    SOFTMAX,
    VOXELS,
    class_probability,
    gradient_pass,
    load_logits,
    load_softmax,
    load_target,
)
from medloss.kernels.numba.sums import Array, Work, flat_numbers
from medloss.kernels.numba.terms import multiply
from medloss.kernels.sum_spec import ROWS, Row, VoxelTerms
from medloss.kernels.thread_pool import POOL

#: Voxels per task, at least, and tasks per map, at most: each has its table of ranges.
_PART, _PARTS = 1 << 17, 64
#: Voxels of a range, on average, and bits of a number that is sorted by at a time.
_RANGE_BITS, _DIGIT = 7, 9
_LARGEST = np.int32(0x7FFFFFFF)


def supports(logits: Tensor, voxel_weight: Tensor | None) -> bool:
    """Whether these extensions can be had here: places have 32 bits, as errors have."""
    return voxel_weight is None and logits.dtype != torch.float64 and 0 < logits.numel() < 2**32


def extensions(
    terms: LovaszTerms, logits: Tensor, target: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, numbers of voxels of the classes, and gradients, as `lovasz_spec` has them."""
    work = Work.of(VoxelTerms(terms.mode, terms.first), logits, target, mask, None)
    items, classes, voxels = logits.shape
    slopes = torch.empty((items, classes, voxels), dtype=torch.float32, device="cpu")
    maps = slopes.view(-1).numpy()
    found = np.zeros((items, work.chunks, classes, 3), np.int64)
    found[..., 1] = _LARGEST

    def run(item: int, chunk: int, begin: int, end: int, buffers: tuple[Array, ...]) -> None:
        _errors_pass(*work.inputs[:5], terms.hinge, item, begin, end, *buffers, maps, found[item, chunk])

    work.run(run)
    number, least, most = found[..., 0].sum(1), found[..., 1].min(1), found[..., 2].max(1)
    regions = [slice(None)] if terms.batch else [slice(item, item + 1) for item in range(items)]
    values = np.zeros((len(regions), classes), np.float32)
    positives = np.zeros((len(regions), classes), np.int64)
    order = np.empty(voxels * (items if terms.batch else 1), np.uint32)
    for r, region in enumerate(regions):
        first = region.start or 0
        for c in range(terms.first, classes):
            positives[r, c] = number[region, c].sum()
            one = _Map(maps, (first * classes + c) * voxels, classes * voxels, voxels, len(number[region]), order)
            low, high = int(least[region, c].min()), int(most[region, c].max())
            values[r, c] = one.extension(int(positives[r, c]), low, high)
    return torch.from_numpy(values), torch.from_numpy(positives), slopes


def gradient_in_place(terms: LovaszTerms, logits: Tensor, mask: Tensor | None, slopes: Tensor, by: Tensor) -> Tensor:
    """The gradient of `(by * values).sum()` for the logits, `[B, C, N]`; `slopes` may become it."""
    work = Work.of(VoxelTerms(terms.mode, terms.first, overlap=True), logits, slopes, mask, None)
    same = logits.dtype == torch.float32 and logits.is_contiguous()
    half = logits.dtype == torch.float16
    result = slopes if same else torch.empty_like(logits, dtype=torch.float32 if half else logits.dtype)
    rows = np.zeros((work.items, work.classes, ROWS), np.float32)
    rows[..., Row.TP] = by.detach().numpy()
    out = flat_numbers(result)

    def run(item: int, chunk: int, begin: int, end: int, buffers: tuple[Array, ...]) -> None:
        gradient_pass(*work.inputs, item, begin, end, *buffers, rows, 0.0, out)

    work.run(run)
    return result.to(logits.dtype)


class _Map:
    """The errors of a class, in one or more items: `parts` runs of `voxels`, `stride` apart, from `start`."""

    def __init__(self, maps: Array, start: int, stride: int, voxels: int, parts: int, order: Array) -> None:
        self.maps = maps[start:]
        size = max(_PART, -(-voxels * parts // _PARTS))
        self.tasks = [
            (part * stride + begin, part * stride + min(begin + size, voxels))
            for part in range(parts)
            for begin in range(0, voxels, size)
        ]
        self.order = order

    def extension(self, positives: int, low: int, high: int) -> float:
        """The value; errors become gradients. `low` is the least error of the class's voxels, `high` the largest."""
        if not positives:
            return float(_largest_alone(self.maps, np.array(self.tasks), high))
        low = max(low, 1)  # what is no error has no gradient
        if high < low:
            low = high = int(_LARGEST)
        total = sum(end - begin for begin, end in self.tasks)
        room = 1 << min(max(total.bit_length() - _RANGE_BITS, 8), 16)
        shift = max((high - low).bit_length() - room.bit_length() + 1, 0)
        number_of_ranges = ((high - low) >> shift) + 1
        counts = np.zeros((len(self.tasks), 2, number_of_ranges), np.int64)

        def count(numbers: Any) -> None:
            for number in numbers:
                _count(self.maps, *self.tasks[number], low, shift, counts[number])

        threads = torch.get_num_threads()
        POOL.run(count, len(self.tasks), threads)
        # The largest errors come first.
        whole = counts.sum(0)[:, ::-1]
        ends = whole.sum(0).cumsum()
        before = np.concatenate([np.zeros((2, 1), np.int64), whole.cumsum(1)[:, :-1]], 1)
        places = counts.sum(1)
        places = (ends - whole.sum(0))[::-1] + places.cumsum(0) - places

        def scatter(numbers: Any) -> None:
            for number in numbers:
                _scatter(self.maps, *self.tasks[number], low, shift, places[number], self.order)

        POOL.run(scatter, len(self.tasks), threads)
        cuts = np.searchsorted(ends, np.linspace(0, ends[-1], len(self.tasks) + 1)[1:-1])
        cuts = np.concatenate([[0], cuts, [number_of_ranges]])
        sums = np.zeros(len(self.tasks))

        def sort(numbers: Any) -> None:
            for number in numbers:
                begin, end = cuts[number], cuts[number + 1]
                ranges = (ends, whole, before, begin, end)
                sums[number] = _sorted_sum(self.maps, self.order, *ranges, positives, low, shift)

        POOL.run(sort, len(self.tasks), threads)
        return float(sums.sum())


@numba.njit(**OPTIONS)
def _signed_errors(score: Any, y: Any, hinge: Any, n: Any, out: Any) -> None:
    one, zero, half = score.dtype.type(1), score.dtype.type(0), score.dtype.type(0.5)
    for i in range(n):
        inside = y[i] > half
        if hinge:
            error = one - score[i] if inside else one + score[i]
            # Compared in this order, a NaN goes through.
            error = zero if error < zero else error
        else:
            error = abs(score[i] - (one if inside else zero))
        out[i] = -error if inside else error


@numba.njit(**OPTIONS)
def _look(errors: Any, n: Any, found: Any) -> None:
    """The number of voxels of a class, the bits of their least error, and of the largest error of all."""
    number, least, most = np.int64(0), _LARGEST, np.int32(0)
    for i in range(n):
        bits = float_bits(errors[i])
        key = np.int32(bits & _LARGEST)
        number += np.int64(bits < 0)
        low = key if bits < 0 else _LARGEST
        least = low if low < least else least
        most = key if key > most else most
    found[0] += number
    found[1] = min(found[1], np.int64(least))
    found[2] = max(found[2], np.int64(most))


@compiled
def _errors_pass(
    logits: Any, target: Any, mask: Any, weight: Any, plan: Any, hinge: Any,
    item: Any, begin: Any, end: Any, wide: Any, narrow: Any, labels: Any, maps: Any, found: Any,
) -> None:  # fmt: skip
    """Write the signed errors of the voxels `begin` to `end` of an item."""
    classes, voxels, block, first = plan[CLASSES], plan[VOXELS], plan[BLOCK], plan[FIRST]
    softmax = plan[MODE] == SOFTMAX
    y, p = narrow[ROW_Y], narrow[ROW_P]
    for start in range(begin, end, block):
        n = min(block, end - start)
        keep = mask[item * voxels + start : item * voxels + start + n] if plan[MASKED] else mask[:0]
        if plan[INDEXED]:
            load_labels(target, plan[KIND], item * voxels + start, n, classes, keep, labels)
        load_logits(logits, plan, item, start, n, wide)
        if softmax:
            load_softmax(plan, n, keep, False, wide, narrow)
        for c in range(first, classes):
            load_target(target, plan, item, c, start, n, keep, labels, y)
            if softmax:
                multiply(wide[classes + c], narrow[ROW_INVERSE], n, p)
            else:
                class_probability(wide[c], plan, n, keep, False, narrow)
            offset = (item * classes + c) * voxels + start
            out = maps[offset : offset + n]
            _signed_errors(p, y, hinge, n, out)
            keep_only(keep, out)
            _look(out, n, found[c])


@compiled
def _largest_alone(maps: Any, tasks: Any, high: Any) -> Any:
    """The largest error, of which one has the gradient."""
    value, taken = np.float32(0), high == 0
    for t in range(tasks.shape[0]):
        for i in range(tasks[t, 0], tasks[t, 1]):
            if not taken and (float_bits(maps[i]) & _LARGEST) == high:
                value, taken = maps[i], True
                maps[i] = np.float32(1)
            else:
                maps[i] = np.float32(0)
    return value


@numba.njit(**OPTIONS)
def _range_of(bits: Any, low: Any, shift: Any) -> Any:
    """The range of an error, negative for one that is left out."""
    key = np.int32(bits & _LARGEST)
    # At the least error of the class's voxels there may be others: they cost nothing.
    return np.int32((key - low) >> shift) if key > low or (key == low and bits < 0) else np.int32(-1)


@compiled
def _count(maps: Any, begin: Any, end: Any, low: Any, shift: Any, counts: Any) -> None:
    """How many errors of voxels of the class, and of others, lie in each range."""
    least, bits_off = np.int32(low), np.int32(shift)
    for i in range(begin, end):
        bits = float_bits(maps[i])
        place = _range_of(bits, least, bits_off)
        if place >= 0:
            counts[1 if bits >= 0 else 0, place] += 1


@compiled
def _scatter(maps: Any, begin: Any, end: Any, low: Any, shift: Any, places: Any, order: Any) -> None:
    """Write where the errors of each range are; what is left out has no gradient."""
    least, bits_off = np.int32(low), np.int32(shift)
    for i in range(begin, end):
        place = _range_of(float_bits(maps[i]), least, bits_off)
        if place >= 0:
            order[places[place]] = i
            places[place] += 1
        else:
            maps[i] = np.float32(0)


@numba.njit(**OPTIONS)
def _insertion_sort(keys: Any, n: Any) -> None:
    for i in range(1, n):
        key = keys[i]
        j = i
        while j > 0 and keys[j - 1] > key:
            keys[j] = keys[j - 1]
            j -= 1
        keys[j] = key


@numba.njit(**OPTIONS)
def _digit_sort(keys: Any, spare: Any, starts: Any, n: Any, bits: Any, low: Any) -> None:
    """`keys` to `spare`, by the bits from `low` on."""
    mask = np.uint64((1 << bits) - 1)
    down = np.uint64(low)
    starts[: 1 << bits] = 0
    for i in range(n):
        starts[(keys[i] >> down) & mask] += 1
    total = 0
    for d in range(1 << bits):
        number = starts[d]
        starts[d] = total
        total += number
    for i in range(n):
        digit = (keys[i] >> down) & mask
        spare[starts[digit]] = keys[i]
        starts[digit] += 1


@compiled
def _sorted_sum(
    maps: Any,
    order: Any,
    ends: Any,
    whole: Any,
    before: Any,
    begin: Any,
    end: Any,
    positives: Any,
    low: Any,
    shift: Any,
) -> Any:
    """The sum over the ranges `begin` to `end` of errors times what they cost, which takes the errors' place."""
    most = 0
    for r in range(begin, end):
        most = max(most, whole[0, r] + whole[1, r])
    keys, spare = np.empty(most, np.uint64), np.empty(most, np.uint64)
    starts = np.empty(1 << _DIGIT, np.int64)
    passes = (shift + _DIGIT - 1) // _DIGIT
    digit = (shift + passes - 1) // passes if passes else 0
    result = 0.0
    low_bits = np.uint64((1 << shift) - 1)
    for r in range(begin, end):
        n = whole[0, r] + whole[1, r]
        if n == 0:
            continue
        start = ends[r] - n
        left, union = positives - before[0, r], positives + before[1, r]
        if whole[1, r] == 0:
            # Each leaves the intersection of the same union.
            jump = 1.0 / union
            for j in range(n):
                place = np.uint64(order[start + j])
                result -= maps[place] * jump
                maps[place] = np.float32(-jump)
            continue
        # Below the bits in which a range's errors differ, from the largest to the least: their places.
        for j in range(n):
            place = np.uint64(order[start + j])
            key = np.uint64(np.int64(float_bits(maps[place]) & _LARGEST) - low) & low_bits
            keys[j] = ((low_bits - key) << np.uint64(32)) | place
        if n <= 24:
            _insertion_sort(keys, n)
        else:
            for k in range(passes):
                _digit_sort(keys, spare, starts, n, min(digit, shift - k * digit), 32 + k * digit)
                keys, spare = spare, keys
        for j in range(n):
            place = keys[j] & np.uint64(0xFFFFFFFF)
            error = maps[place]
            if float_bits(error) < 0:
                left -= 1
                jump = 1.0 / union
                result -= error * jump
                maps[place] = np.float32(-jump)
            else:
                jump = left / (np.float64(union) * (union + 1))
                union += 1
                result += error * jump
                maps[place] = np.float32(jump)
    return result
