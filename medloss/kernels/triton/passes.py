"""The passes over the voxels as Triton programs: each processes some tiles `[classes, voxels]` of one item."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from medloss.kernels.sum_spec import Row
from medloss.kernels.triton.formulas import (
    entropy,
    independent,
    independent_derivative,
    log_derivative,
    one_minus_exp,
    selected_product,
    softmax,
    softmax_derivative,
)

TP = tl.constexpr(int(Row.TP))
PREDICTION = tl.constexpr(int(Row.PREDICTION))
TARGET = tl.constexpr(int(Row.TARGET))
SQUARED_PREDICTION = tl.constexpr(int(Row.SQUARED_PREDICTION))
SQUARED_TARGET = tl.constexpr(int(Row.SQUARED_TARGET))
ERROR_INSIDE = tl.constexpr(int(Row.ERROR_INSIDE))
ERROR_OUTSIDE = tl.constexpr(int(Row.ERROR_OUTSIDE))
POSITIVE = tl.constexpr(int(Row.POSITIVE))
NEGATIVE = tl.constexpr(int(Row.NEGATIVE))
WEIGHTED_TARGET = tl.constexpr(int(Row.WEIGHTED_TARGET))


class Plan(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
        mode: and `first`, `overlap`, `squares`, `errors`, `entropy`, `gamma`: as in `VoxelTerms`.
        classes: C.
        index_map: the target is an index map.
        weights: `""`, `shared` by the classes, or one map for `each`.
        whole: no mask, and the tiles fill the space: every voxel counts.
        accumulator: the type of all arithmetic.
        block_c: classes of a tile, a power of two.
        block_n: voxels of a tile.
        vector: neighbours along the space that a thread holds.
        tiles: tiles a program.
        warps: warps a program.
    """

    mode: str
    first: int
    overlap: bool
    squares: bool
    errors: bool
    entropy: str
    gamma: float
    classes: int
    index_map: bool
    weights: str
    whole: bool
    accumulator: Any
    block_c: int
    block_n: int
    vector: int
    tiles: int
    warps: int


@triton.jit
def _place(programs: tl.tensor) -> tl.tensor:
    """The program's item and part of the space, in 64 bits: offsets pass 2^31."""
    program = tl.program_id(0)
    return (program // programs).to(tl.int64), (program % programs).to(tl.int64)


@triton.jit
def _load(
    logits: tl.tensor,
    target: tl.tensor,
    mask: tl.tensor,
    item: tl.tensor,
    tile: tl.tensor,
    voxels: tl.tensor,
    PLAN: tl.constexpr,
) -> tl.tensor:
    """A tile's logits and targets, 0 where nothing counts; the voxels that count, those that exist; offsets, bounds.

    What a mask leaves out is read and not selected: loads of single voxels would be slower than those of whole lines.
    """
    c = tl.arange(0, PLAN.block_c)[:, None]
    # The neighbours a thread holds are fixed, and lines are tiles of one row: all loads, and the order of the sums, are
    # the same for any target.
    n = tl.max_contiguous(tile * PLAN.block_n + tl.arange(0, PLAN.block_n), PLAN.vector)[None, :]
    at = c.to(tl.int64) * voxels + n
    inside = tl.full([1, PLAN.block_n], True, tl.int1) if PLAN.whole else n < voxels
    counted = inside
    if mask is not None:
        counted = inside & (tl.load(mask + item * voxels + n, mask=inside, other=0) != 0)
    real = (c < PLAN.classes) & inside
    base = item * PLAN.classes * voxels
    z = tl.load(logits + base + at, mask=real, other=float("-inf") if PLAN.mode == "softmax" else 0.0)
    z = tl.where(counted, z.to(PLAN.accumulator), 0.0)
    if PLAN.index_map:
        label = tl.load(target + item * voxels + n, mask=inside, other=0)
        whole = label.to(tl.int32)
        known = counted & (whole.to(label.dtype) == label) & (whole < PLAN.classes)
        one = tl.full([1, 1], 1.0, PLAN.accumulator)
        y = tl.where(tl.where(known, whole, -1) == c, one, one - one)
    else:
        y = tl.load(target + base + at, mask=real, other=0).to(PLAN.accumulator)
        y = tl.where(counted, y, 0.0)
    return z, y, counted, n, at, real


@triton.jit
def _load_weight(
    weight: tl.tensor,
    item: tl.tensor,
    voxels: tl.tensor,
    counted: tl.tensor,
    n: tl.tensor,
    at: tl.tensor,
    real: tl.tensor,
    PLAN: tl.constexpr,
) -> tl.tensor:
    """A tile's weights, 0 where nothing counts."""
    if PLAN.weights == "each":
        counts = real & (tl.arange(0, PLAN.block_c) >= PLAN.first)[:, None]
        base = item * (PLAN.classes - PLAN.first) * voxels - PLAN.first * voxels
        v = tl.where(counted, tl.load(weight + base + at, mask=counts, other=0), 0.0)
    elif PLAN.weights == "shared":
        v = tl.where(counted, tl.load(weight + item * voxels + n, mask=n < voxels, other=0), 0.0)
    else:
        v = tl.full([1, PLAN.block_n], 1.0, PLAN.accumulator)
    return v.to(PLAN.accumulator)


@triton.jit
def _lanes(x: tl.tensor, PLAN: tl.constexpr) -> tl.tensor:
    """A thread's neighbours added up; lanes and warps wait until the last tile."""
    return tl.sum(tl.reshape(x, [PLAN.block_c, PLAN.block_n // PLAN.vector, PLAN.vector]), 2)


@triton.jit
def sums_pass(
    logits: tl.tensor,
    target: tl.tensor,
    mask: tl.tensor,
    weight: tl.tensor,
    partial: tl.tensor,
    voxels: tl.tensor,
    programs: tl.tensor,
    PLAN: tl.constexpr,
) -> None:
    """The sums of a program's tiles, into `partial` `[ROWS, B, C, programs]`; rows not requested stay as they are."""
    item, part = _place(programs)
    tp = tl.zeros([PLAN.block_c, PLAN.block_n // PLAN.vector], PLAN.accumulator)
    prediction = tp
    truth = tp
    weighted_truth = tp
    squared_prediction = tp
    squared_truth = tp
    error_inside = tp
    error_outside = tp
    positive = tp
    negative = tp
    for t in range(PLAN.tiles):
        z, y, counted, n, at, real = _load(logits, target, mask, item, part * PLAN.tiles + t, voxels, PLAN)
        v = _load_weight(weight, item, voxels, counted, n, at, real, PLAN)
        if PLAN.mode == "softmax":
            p, l = softmax(z, PLAN.entropy != "")  # noqa: E741
            q = l
            o = one_minus_exp(l, p) if PLAN.entropy == "focal" or PLAN.entropy == "focal_background" else p
        else:
            p, o, l, q = independent(z, PLAN.mode, PLAN.entropy != "")  # noqa: E741
        seen = tl.where(counted, p, 0.0)
        truth += _lanes(y, PLAN)
        if PLAN.overlap:
            tp += _lanes(y * p * v, PLAN)
            prediction += _lanes(seen * v, PLAN)
            if PLAN.weights != "":
                weighted_truth += _lanes(y * v, PLAN)
        if PLAN.squares:
            squared_prediction += _lanes(seen * seen * v, PLAN)
            squared_truth += _lanes(y * y * v, PLAN)
        if PLAN.errors:
            error = (y - seen) * (y - seen) * v
            error_inside += _lanes(error * y, PLAN)
            error_outside += _lanes(error * (1.0 - y), PLAN)
        if PLAN.entropy != "":
            h = entropy(l, q, o, PLAN.mode, PLAN.entropy, PLAN.gamma, False)
            positive += _lanes(selected_product(y, h, p, PLAN.entropy) * v, PLAN)
            if PLAN.mode != "softmax":
                no = tl.where(counted, 1.0 - y, 0.0)
                h = entropy(q, l, p, PLAN.mode, PLAN.entropy, PLAN.gamma, True)
                negative += _lanes(selected_product(no, h, p, PLAN.entropy) * v, PLAN)
    c = tl.arange(0, PLAN.block_c)
    out = partial + (item * PLAN.classes + c) * programs + part
    row = tl.num_programs(0).to(tl.int64) * PLAN.classes
    known = c < PLAN.classes
    counts = known & (c >= PLAN.first)
    tl.store(out + TARGET * row, tl.sum(truth, 1), mask=known)
    if PLAN.overlap:
        tl.store(out + TP * row, tl.sum(tp, 1), mask=counts)
        tl.store(out + PREDICTION * row, tl.sum(prediction, 1), mask=counts)
        if PLAN.weights != "":
            tl.store(out + WEIGHTED_TARGET * row, tl.sum(weighted_truth, 1), mask=counts)
    if PLAN.squares:
        tl.store(out + SQUARED_PREDICTION * row, tl.sum(squared_prediction, 1), mask=counts)
        tl.store(out + SQUARED_TARGET * row, tl.sum(squared_truth, 1), mask=counts)
    if PLAN.errors:
        tl.store(out + ERROR_INSIDE * row, tl.sum(error_inside, 1), mask=counts)
        tl.store(out + ERROR_OUTSIDE * row, tl.sum(error_outside, 1), mask=counts)
    if PLAN.entropy != "":
        tl.store(out + POSITIVE * row, tl.sum(positive, 1), mask=counts)
        if PLAN.mode != "softmax":
            tl.store(out + NEGATIVE * row, tl.sum(negative, 1), mask=counts)


@triton.jit
def _gradient_row(sum_gradients: tl.tensor, item: tl.tensor, row: tl.tensor, PLAN: tl.constexpr) -> tl.tensor:
    """A row's gradients, 0 for classes that do not count, whatever stands there."""
    c = tl.arange(0, PLAN.block_c)
    at = sum_gradients + row + item * PLAN.classes + c
    return tl.load(at, mask=(c >= PLAN.first) & (c < PLAN.classes), other=0).to(PLAN.accumulator)[:, None]


@triton.jit
def backward_pass(
    logits: tl.tensor,
    target: tl.tensor,
    mask: tl.tensor,
    weight: tl.tensor,
    sum_gradients: tl.tensor,
    gradient: tl.tensor,
    voxels: tl.tensor,
    programs: tl.tensor,
    PLAN: tl.constexpr,
) -> None:
    """The gradient on a program's tiles."""
    item, part = _place(programs)
    row = tl.num_programs(0) // programs * PLAN.classes
    if PLAN.overlap:
        along_tp = _gradient_row(sum_gradients, item, TP * row, PLAN)
        along_prediction = _gradient_row(sum_gradients, item, PREDICTION * row, PLAN)
    if PLAN.squares:
        along_square = 2.0 * _gradient_row(sum_gradients, item, SQUARED_PREDICTION * row, PLAN)
    if PLAN.errors:
        along_inside = 2.0 * _gradient_row(sum_gradients, item, ERROR_INSIDE * row, PLAN)
        along_outside = 2.0 * _gradient_row(sum_gradients, item, ERROR_OUTSIDE * row, PLAN)
    if PLAN.entropy != "":
        along_positive = _gradient_row(sum_gradients, item, POSITIVE * row, PLAN)
        if PLAN.mode != "softmax":
            along_negative = _gradient_row(sum_gradients, item, NEGATIVE * row, PLAN)
    for t in range(PLAN.tiles):
        z, y, counted, n, at, real = _load(logits, target, mask, item, part * PLAN.tiles + t, voxels, PLAN)
        v = _load_weight(weight, item, voxels, counted, n, at, real, PLAN)
        if PLAN.mode == "softmax":
            p, l = softmax(z, PLAN.gamma != 0.0)  # noqa: E741
        else:
            p, o, l, q = independent(z, PLAN.mode, PLAN.gamma != 0.0)  # noqa: E741
        along_p = tl.zeros([PLAN.block_c, PLAN.block_n], PLAN.accumulator)
        if PLAN.overlap:
            along_p += (along_tp * y + along_prediction) * v
        if PLAN.squares:
            along_p += along_square * p * v
        if PLAN.errors:
            along_p += (p - y) * v * (along_inside * y + along_outside * (1.0 - y))
        if PLAN.mode == "softmax":
            derivative = along_p * p
            if PLAN.entropy == "plain":
                derivative -= along_positive * v * y
            elif PLAN.entropy != "":
                along_l = softmax_derivative(l, p, PLAN.entropy, PLAN.gamma)
                derivative += selected_product(along_positive * v * y, along_l, p, PLAN.entropy)
            dz = derivative - p * tl.sum(derivative, 0)[None, :]
        else:
            dz = along_p * p * o if PLAN.mode == "sigmoid" else along_p
            if PLAN.entropy != "":
                dl = o if PLAN.mode == "sigmoid" else log_derivative(p)
                dq = -p if PLAN.mode == "sigmoid" else -log_derivative(o)
                along_z = independent_derivative(l, q, o, dl, dq, PLAN.mode, PLAN.entropy, PLAN.gamma, False)
                dz += selected_product(along_positive * v * y, along_z, p, PLAN.entropy)
                along_z = independent_derivative(q, l, p, dq, dl, PLAN.mode, PLAN.entropy, PLAN.gamma, True)
                dz += selected_product(along_negative * v * (1.0 - y), along_z, p, PLAN.entropy)
        tl.store(gradient + item * PLAN.classes * voxels + at, tl.where(counted, dz, 0.0), mask=real)


@triton.jit
def map_pass(
    logits: tl.tensor,
    target: tl.tensor,
    mask: tl.tensor,
    positive: tl.tensor,
    negative: tl.tensor,
    out: tl.tensor,
    voxels: tl.tensor,
    programs: tl.tensor,
    PLAN: tl.constexpr,
) -> None:
    """The entropy on a program's tiles."""
    item, part = _place(programs)
    yes = _gradient_row(positive, item, 0, PLAN)
    no = _gradient_row(negative, item, 0, PLAN)
    for t in range(PLAN.tiles):
        z, y, counted, n, at, real = _load(logits, target, mask, item, part * PLAN.tiles + t, voxels, PLAN)
        if PLAN.mode == "softmax":
            p, l = softmax(z, True)  # noqa: E741
            o = one_minus_exp(l, p) if PLAN.entropy == "focal" or PLAN.entropy == "focal_background" else p
            h = entropy(l, l, o, PLAN.mode, PLAN.entropy, PLAN.gamma, False)
            values = tl.sum(selected_product(yes * y, h, p, PLAN.entropy), 0)[None, :]
            tl.store(out + item * voxels + n, tl.where(counted, values, 0.0), mask=n < voxels)
        else:
            p, o, l, q = independent(z, PLAN.mode, True)  # noqa: E741
            h = entropy(l, q, o, PLAN.mode, PLAN.entropy, PLAN.gamma, False)
            values = selected_product(yes * y, h, p, PLAN.entropy)
            h = entropy(q, l, p, PLAN.mode, PLAN.entropy, PLAN.gamma, True)
            values += selected_product(no * (1.0 - y), h, p, PLAN.entropy)
            kept = out + item * (PLAN.classes - PLAN.first) * voxels - PLAN.first * voxels + at
            counts = real & (tl.arange(0, PLAN.block_c) >= PLAN.first)[:, None]
            tl.store(kept, tl.where(counted, values, 0.0), mask=counts)
