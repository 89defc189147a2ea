"""Sums over groups of voxels: compiled passes over blocks that stay in the cache."""

from typing import Any

import numba
import numpy as np
from torch import Tensor, empty_like, float16, float32, from_numpy

from medloss.kernels.group_spec import GroupTerms
from medloss.kernels.numba import terms as formulas
from medloss.kernels.numba.blocks import keep_only, load_labels, store_difference
from medloss.kernels.numba.compilation import OPTIONS, compiled
from medloss.kernels.numba.interleaved import store_interleaved
from medloss.kernels.numba.passes import (
    BLOCK,
    CLASSES,
    FIRST,
    GIVEN,
    INDEXED,
    INTERLEAVED,
    KIND,
    MASKED,
    MODE,
    ROW_INVERSE,
    ROW_O,
    ROW_P,
    ROW_SHARED,
    ROW_U,
    ROW_V,
    ROW_Y,
    SOFTMAX,
    VOXELS,
    class_probability,
    load_logits,
    load_softmax,
    load_target,
    load_voxel_weight,
)
from medloss.kernels.numba.sums import Array, Work, flat_numbers
from medloss.kernels.sum_spec import VoxelTerms

_BY = {"bins": 0, "soft_bins": 1, "labels": 2}
_BINS, _SOFT, _LABELS = 0, 1, 2
#: Sums of neighbouring voxels go to different places: of one group they would wait for each other.
_LANES = 4
#: Voxels that are summed in vector registers if all of them are of one group, as most neighbours are.
_TILE = 64


def group_sums(
    terms: GroupTerms, logits: Tensor, target: Tensor, mask: Tensor | None, voxel_weight: Tensor | None
) -> Tensor:
    """The sums of `GroupTerms`, `[2, B, C, groups]`."""
    work = Work.of(VoxelTerms(terms.mode, terms.first), logits, target, mask, voxel_weight)
    by, groups = _BY[terms.by], terms.groups
    partial = np.zeros((work.items, work.chunks, work.classes, groups + 1, 2))

    def run(item: int, chunk: int, begin: int, end: int, buffers: tuple[Array, ...]) -> None:
        _sums_pass(*work.inputs[:5], by, groups, item, begin, end, *buffers, partial[item, chunk])

    work.run(run)
    # Added in order, whichever thread computed them: the result does not depend on the number of threads.
    sums = np.zeros((work.items, work.classes, groups + 1, 2))
    for chunk in range(work.chunks):
        sums += partial[:, chunk]
    return from_numpy(sums[:, :, :groups]).permute(3, 0, 1, 2).contiguous()


def group_sums_backward(
    terms: GroupTerms,
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    voxel_weight: Tensor | None,
    sum_gradients: Tensor,
) -> Tensor:
    """The gradient of `(sum_gradients * group_sums(...)).sum()`, `[B, C, N]`."""
    work = Work.of(VoxelTerms(terms.mode, terms.first), logits, target, mask, voxel_weight)
    gradient = empty_like(logits, dtype=float32 if logits.dtype == float16 else logits.dtype)
    out, by, groups = flat_numbers(gradient), _BY[terms.by], terms.groups
    # A further group has no gradient: that of voxels in none.
    table = np.zeros((work.items, work.classes, 2, groups + 1), work.real)
    table[..., :groups] = sum_gradients.detach().permute(1, 2, 0, 3).numpy()

    def run(item: int, chunk: int, begin: int, end: int, buffers: tuple[Array, ...]) -> None:
        _gradient_pass(*work.inputs[:5], by, groups, item, begin, end, *buffers, table, out)

    work.run(run)
    return gradient.to(logits.dtype)


@numba.njit(**OPTIONS)
def _bins(p: Any, groups: Any, n: Any, index: Any) -> None:
    """The number of edges m/M, as floats have them, below p."""
    number, last = p.dtype.type(groups), np.int32(groups - 1)
    for i in range(n):
        place = np.int32(p[i] * number)
        place = np.int32(0) if place < 0 else (last if place > last else place)
        # The product may have been rounded up to the edge, never down from above it.
        place -= np.int32(p[i] <= p.dtype.type(place) / number)
        index[i] = np.int32(0) if place < 0 else place


@numba.njit(**OPTIONS)
def _soft_bins(p: Any, groups: Any, n: Any, index: Any, above: Any) -> None:
    """The lower of a voxel's two bins, and the share of the upper one."""
    number, half, zero = p.dtype.type(groups), p.dtype.type(0.5), p.dtype.type(0)
    most, last = p.dtype.type(groups - 1), np.int32(max(groups - 2, 0))
    for i in range(n):
        place = p[i] * number - half
        # Compared in this order, a NaN goes through.
        place = zero if place < zero else (most if place > most else place)
        lower = np.int32(place)
        lower = np.int32(0) if lower < 0 else (last if lower > last else lower)
        index[i] = lower
        above[i] = place - p.dtype.type(lower)


@numba.njit(**OPTIONS)
def _label_groups(labels: Any, groups: Any, n: Any, index: Any) -> None:
    for i in range(n):
        index[i] = labels[i] if labels[i] >= 0 else np.int32(groups)


@numba.njit(**OPTIONS)
def _find(by: Any, groups: Any, p: Any, labels: Any, n: Any, index: Any, above: Any) -> None:
    """Each voxel's group."""
    if by == _BINS:
        _bins(p, groups, n, index)
    elif by == _SOFT:
        _soft_bins(p, groups, n, index, above)
    else:
        _label_groups(labels, groups, n, index)


@numba.njit(**OPTIONS)
def _add_whole(index: Any, p: Any, y: Any, v: Any, n: Any, sums: Any) -> None:
    zero = p.dtype.type(0)
    for tile in range(0, n, _TILE):
        start, end = np.uint64(tile), np.uint64(min(tile + _TILE, n))
        differs = np.int32(0)
        for i in range(start, end):
            differs |= np.int32(index[i] ^ index[start])
        if differs:
            for i in range(start, end):
                lane, k = np.uint64(i & np.uint64(_LANES - 1)), np.uint64(index[i])
                sums[lane, k, 0] += v[i]
                sums[lane, k, 1] += v[i] * (p[i] - y[i])
            continue
        mass, off = zero, zero
        for i in range(start, end):
            mass += v[i]
            off += v[i] * (p[i] - y[i])
        sums[0, np.uint64(index[start]), 0] += mass
        sums[0, np.uint64(index[start]), 1] += off


@numba.njit(**OPTIONS)
def _add_shared(index: Any, above: Any, p: Any, y: Any, v: Any, n: Any, sums: Any) -> None:
    for i in range(n):
        lane, k = np.uint64(i & (_LANES - 1)), np.uint64(index[i])
        upper = v[i] * above[i]
        lower, off = v[i] - upper, p[i] - y[i]
        sums[lane, k, 0] += lower
        sums[lane, k, 1] += lower * off
        sums[lane, k + np.uint64(1), 0] += upper
        sums[lane, k + np.uint64(1), 1] += upper * off


@compiled
def _sums_pass(
    logits: Any, target: Any, mask: Any, weight: Any, plan: Any, by: Any, groups: Any,
    item: Any, begin: Any, end: Any, wide: Any, narrow: Any, labels: Any, sums: Any,
) -> None:  # fmt: skip
    """Add the sums of the voxels `begin` to `end` of an item to `sums`, `[C, groups + 1, 2]`."""
    classes, voxels, block, first = plan[CLASSES], plan[VOXELS], plan[BLOCK], plan[FIRST]
    softmax = plan[MODE] == SOFTMAX
    y, v, p, above = narrow[ROW_Y], narrow[ROW_V], narrow[ROW_P], narrow[ROW_O]
    index = np.empty(block, np.int32)
    lanes = np.zeros((classes, _LANES, groups + 1, 2))
    for start in range(begin, end, block):
        n = min(block, end - start)
        keep = mask[item * voxels + start : item * voxels + start + n] if plan[MASKED] else mask[:0]
        if plan[INDEXED]:
            load_labels(target, plan[KIND], item * voxels + start, n, classes, keep, labels)
        load_logits(logits, plan, item, start, n, wide)
        if softmax:
            load_softmax(plan, n, keep, False, wide, narrow)
        load_voxel_weight(weight, plan, item, 0, start, n, keep, v)
        for c in range(first, classes):
            load_target(target, plan, item, c, start, n, keep, labels, y)
            if softmax:
                formulas.multiply(wide[classes + c], narrow[ROW_INVERSE], n, p)
            else:
                class_probability(wide[c], plan, n, keep, False, narrow)
            _find(by, groups, p, labels, n, index, above)
            if by == _SOFT:
                _add_shared(index, above, p, y, v, n, lanes[c])
            else:
                _add_whole(index, p, y, v, n, lanes[c])
    for lane in range(_LANES):
        sums += lanes[:, lane]


@numba.njit(**OPTIONS)
def _gather(index: Any, off: Any, v: Any, n: Any, out: Any) -> None:
    for i in range(n):
        out[i] = v[i] * off[np.uint64(index[i])]


@numba.njit(**OPTIONS)
def _gather_shared(
    index: Any, above: Any, groups: Any, p: Any, y: Any, v: Any, mass: Any, off: Any, n: Any, out: Any
) -> None:
    number, zero = p.dtype.type(groups), p.dtype.type(0)
    most = p.dtype.type(groups - 1)
    for i in range(n):
        k = np.uint64(index[i])
        place = above[i] + p.dtype.type(index[i])
        moved = number if (place > zero) & (place < most) else zero
        rise = off[k + np.uint64(1)] - off[k]
        change = mass[k + np.uint64(1)] - mass[k] + (p[i] - y[i]) * rise
        out[i] = v[i] * (off[k] + above[i] * rise + moved * change)


@compiled
def _gradient_pass(
    logits: Any, target: Any, mask: Any, weight: Any, plan: Any, by: Any, groups: Any,
    item: Any, begin: Any, end: Any, wide: Any, narrow: Any, labels: Any, table: Any, gradient: Any,
) -> None:  # fmt: skip
    """Write the gradient at the voxels `begin` to `end` of an item; `table` is `[B, C, 2, groups + 1]`."""
    classes, voxels, block, first = plan[CLASSES], plan[VOXELS], plan[BLOCK], plan[FIRST]
    softmax, interleaved = plan[MODE] == SOFTMAX, plan[INTERLEAVED] != 0
    y, v, p, above = narrow[ROW_Y], narrow[ROW_V], narrow[ROW_P], narrow[ROW_O]
    shared, inverse = narrow[ROW_SHARED], narrow[ROW_INVERSE]
    index = np.empty(block, np.int32)
    for start in range(begin, end, block):
        n = min(block, end - start)
        keep = mask[item * voxels + start : item * voxels + start + n] if plan[MASKED] else mask[:0]
        if plan[INDEXED]:
            load_labels(target, plan[KIND], item * voxels + start, n, classes, keep, labels)
        load_logits(logits, plan, item, start, n, wide)
        if softmax:
            load_softmax(plan, n, keep, False, wide, narrow)
        load_voxel_weight(weight, plan, item, 0, start, n, keep, v)
        formulas.fill(shared, n, 0)
        for c in range(classes):
            z = wide[c]
            if c < first:
                formulas.fill(z, n, 0)
                continue
            load_target(target, plan, item, c, start, n, keep, labels, y)
            if softmax:
                formulas.multiply(wide[classes + c], inverse, n, p)
            else:
                class_probability(z, plan, n, keep, False, narrow)
            _find(by, groups, p, labels, n, index, above)
            if by == _SOFT:
                _gather_shared(index, above, groups, p, y, v, table[item, c, 0], table[item, c, 1], n, z)
            else:
                _gather(index, table[item, c, 1], v, n, z)
            if plan[MODE] != GIVEN:
                formulas.scale(p, n, z)
            if softmax:
                formulas.add(z, n, shared)
            elif plan[MODE] != GIVEN:
                formulas.scale(narrow[ROW_U], n, z)
        # The gradient is p G - p sum(p G) of a softmax, with p = e * inverse.
        if softmax:
            formulas.scale(inverse, n, shared)
        for c in range(classes):
            offset = (item * classes + c) * voxels + start
            e = wide[classes + c]
            if not softmax:
                formulas.fill(e, n, 0)
            if interleaved:
                formulas.subtract_product(e, shared, n, wide[c])
                keep_only(keep, wide[c])
            else:
                row = gradient[offset : offset + n]
                store_difference(wide[c], e, shared, row)
                keep_only(keep, row)
        if interleaved:
            spare = wide[classes:].reshape(-1)
            store_interleaved(wide, classes, n, gradient, (item * voxels + start) * classes, spare)
