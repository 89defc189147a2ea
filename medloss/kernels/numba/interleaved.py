"""Channels-last logits and gradients: to one row per class of a block, and back."""

from collections.abc import Iterable
from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.extending import intrinsic, overload

from medloss.kernels.numba.blocks import from_logit, load_row, round_short, to_logit
from medloss.kernels.numba.compilation import OPTIONS

#: Voxels whose classes are moved at a time: they stay in the first cache.
_TILE = 128


@numba.njit(**OPTIONS)
def load_interleaved(logits: Any, offset: Any, classes: Any, n: Any, out: Any, spare: Any) -> None:
    """Channels-last logits of `n` voxels, to floats, one row per class; `spare` has room for all of them."""
    row = logits[offset : offset + n * classes]
    if classes == 2:
        _split_two(row, n, out[0], out[1])
    elif classes == 3:
        _split_three(row, n, out[0], out[1], out[2])
    elif classes == 4:
        _split_four(row, n, out[0], out[1], out[2], out[3])
    else:
        for start in range(0, n, _TILE):
            m = min(_TILE, n - start)
            tile = _widened(row[start * classes : (start + m) * classes], spare)
            _split_tile(tile, classes, m, out, start)


@numba.njit(**OPTIONS)
def store_interleaved(values: Any, classes: Any, n: Any, gradient: Any, offset: Any, spare: Any) -> None:
    """The reverse, to the logits' type."""
    row = gradient[offset : offset + n * classes]
    if classes == 2:
        _join_two(values[0], values[1], n, row)
    elif classes == 3:
        _join_three(values[0], values[1], values[2], n, row)
    elif classes == 4:
        _join_four(values[0], values[1], values[2], values[3], n, row)
    else:
        for start in range(0, n, _TILE):
            m = min(_TILE, n - start)
            tile = row[start * classes : (start + m) * classes]
            floats = _room(tile, spare)
            _join_tile(values, start, classes, m, floats)
            _narrow(floats, tile)


@numba.njit(**OPTIONS)
def _split_two(row: Any, n: Any, a: Any, b: Any) -> None:
    for i in range(n):
        a[i] = from_logit(row[2 * i])
        b[i] = from_logit(row[2 * i + 1])


@numba.njit(**OPTIONS)
def _split_three(row: Any, n: Any, a: Any, b: Any, c: Any) -> None:
    for i in range(n):
        a[i] = from_logit(row[3 * i])
        b[i] = from_logit(row[3 * i + 1])
        c[i] = from_logit(row[3 * i + 2])


@numba.njit(**OPTIONS)
def _split_four(row: Any, n: Any, a: Any, b: Any, c: Any, d: Any) -> None:
    for i in range(n):
        a[i] = from_logit(row[4 * i])
        b[i] = from_logit(row[4 * i + 1])
        c[i] = from_logit(row[4 * i + 2])
        d[i] = from_logit(row[4 * i + 3])


@numba.njit(**OPTIONS)
def _join_two(a: Any, b: Any, n: Any, row: Any) -> None:
    for i in range(n):
        row[2 * i] = to_logit(a[i], row)
        row[2 * i + 1] = to_logit(b[i], row)


@numba.njit(**OPTIONS)
def _join_three(a: Any, b: Any, c: Any, n: Any, row: Any) -> None:
    for i in range(n):
        row[3 * i] = to_logit(a[i], row)
        row[3 * i + 1] = to_logit(b[i], row)
        row[3 * i + 2] = to_logit(c[i], row)


@numba.njit(**OPTIONS)
def _join_four(a: Any, b: Any, c: Any, d: Any, n: Any, row: Any) -> None:
    for i in range(n):
        row[4 * i] = to_logit(a[i], row)
        row[4 * i + 1] = to_logit(b[i], row)
        row[4 * i + 2] = to_logit(c[i], row)
        row[4 * i + 3] = to_logit(d[i], row)


# Neighbouring numbers are converted in vector registers, those of one class are not: so they are converted first.


def _widened(row: Any, spare: Any) -> Any:
    """A row of logits as floats: itself, or in `spare`."""
    raise NotImplementedError


def _room(row: Any, spare: Any) -> Any:
    """Where the floats of a row of logits are collected: in itself, or in `spare`."""
    raise NotImplementedError


def _narrow(floats: Any, row: Any) -> None:
    """Write what was collected in `_room`."""
    raise NotImplementedError


@overload(_widened, jit_options=OPTIONS)
def _widened_row(row: Any, spare: Any) -> Any:
    def short(row: Any, spare: Any) -> Any:
        load_row(row, spare)
        return spare[: row.shape[0]]

    def same(row: Any, spare: Any) -> Any:
        return row

    return short if row.dtype == numba.uint16 else same


@overload(_room, jit_options=OPTIONS)
def _room_of_row(row: Any, spare: Any) -> Any:
    def short(row: Any, spare: Any) -> Any:
        return spare[: row.shape[0]]

    def same(row: Any, spare: Any) -> Any:
        return row

    return short if row.dtype == numba.uint16 else same


@overload(_narrow, jit_options=OPTIONS)
def _narrow_row(floats: Any, row: Any) -> Any:
    def short(floats: Any, row: Any) -> None:
        for i in range(row.shape[0]):
            row[i] = round_short(floats[i])

    def same(floats: Any, row: Any) -> None:
        pass

    return short if row.dtype == numba.uint16 else same


# More classes: 16 voxels and 4 classes at a time, which change places inside vector registers. Strided loads and stores
# of single numbers, which is what LLVM makes of such loops, take three times as long.

_VOXELS, _CLASSES = 16, 4


def _split_tile(tile: Any, classes: Any, n: Any, out: Any, start: Any) -> None:
    """The floats of a tile's `n` voxels to the rows of `out`, from the column `start` on; five classes or more."""
    raise NotImplementedError


def _join_tile(values: Any, start: Any, classes: Any, n: Any, tile: Any) -> None:
    """The reverse."""
    raise NotImplementedError


@overload(_split_tile, jit_options=OPTIONS)
def _split_tile_by_type(tile: Any, classes: Any, n: Any, out: Any, start: Any) -> Any:
    def single(tile: Any, classes: Any, n: Any, out: Any, start: Any) -> None:
        whole = n // _VOXELS * _VOXELS
        for c in range(0, classes, _CLASSES):
            first = min(c, classes - _CLASSES)  # the last group overlaps the one before
            for i in range(0, whole, _VOXELS):
                _split_square(tile, i * classes + first, classes, out, first, start + i, out.shape[1])
        for c in range(classes):
            _split_one(tile, whole * classes + c, classes, n - whole, out[c, start + whole : start + n])

    def double(tile: Any, classes: Any, n: Any, out: Any, start: Any) -> None:
        for c in range(classes):
            _split_one(tile, c, classes, n, out[c, start : start + n])

    return single if tile.dtype == numba.float32 else double


@overload(_join_tile, jit_options=OPTIONS)
def _join_tile_by_type(values: Any, start: Any, classes: Any, n: Any, tile: Any) -> Any:
    def single(values: Any, start: Any, classes: Any, n: Any, tile: Any) -> None:
        whole = n // _VOXELS * _VOXELS
        for c in range(0, classes, _CLASSES):
            first = min(c, classes - _CLASSES)
            for i in range(0, whole, _VOXELS):
                _join_square(tile, i * classes + first, classes, values, first, start + i, values.shape[1])
        for c in range(classes):
            _join_one(values[c, start + whole : start + n], whole * classes + c, classes, n - whole, tile)

    def double(values: Any, start: Any, classes: Any, n: Any, tile: Any) -> None:
        for c in range(classes):
            _join_one(values[c, start : start + n], c, classes, n, tile)

    return single if tile.dtype == numba.float32 else double


@intrinsic
def _split_square(context: Any, tile: Any, at: Any, classes: Any, rows: Any, row: Any, column: Any, width: Any) -> Any:
    """`rows[row + c, column + i] = tile[at + i * classes + c]` for 16 voxels i and 4 classes c.

    `width` is the length of a row. All are contiguous arrays of float32.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        voxels, classes_of_voxels = _pointers(context, builder, signature, arguments)
        fours = [builder.load(pointer, align=4) for pointer in voxels]
        mixed = []
        for j in range(_CLASSES):
            low, high = _joined(builder, fours[j], fours[j + 4]), _joined(builder, fours[j + 8], fours[j + 12])
            mixed.append(_joined(builder, low, high))
        for pointer, numbers in zip(classes_of_voxels, _transposed(builder, mixed), strict=True):
            builder.store(numbers, pointer, align=4)
        return context.get_dummy_value()

    return _signature(tile, rows), generate


@intrinsic
def _join_square(context: Any, tile: Any, at: Any, classes: Any, rows: Any, row: Any, column: Any, width: Any) -> Any:
    """`_split_square` in reverse: `tile[at + i * classes + c] = rows[row + c, column + i]`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        voxels, classes_of_voxels = _pointers(context, builder, signature, arguments)
        mixed = _transposed(builder, [builder.load(pointer, align=4) for pointer in classes_of_voxels])
        for i, pointer in enumerate(voxels):
            lane, register = divmod(i, _CLASSES)
            numbers = mixed[register]
            part = _shuffled(builder, numbers, numbers, range(lane * _CLASSES, (lane + 1) * _CLASSES))
            builder.store(part, pointer, align=4)
        return context.get_dummy_value()

    return _signature(tile, rows), generate


def _signature(tile: Any, rows: Any) -> Any:
    number = numba.int64
    return numba.void(tile, number, number, rows, number, number, number)


def _pointers(context: Any, builder: Any, signature: Any, arguments: Any) -> tuple[list[Any], list[Any]]:
    """Where the 4 numbers of each voxel lie in the tile, and where the 16 numbers of each class lie in the rows."""
    tile, at, classes, rows, row, column, width = arguments

    def pointers(array: int, value: Any, first: Any, step: Any, count: int, length: int) -> Iterable[Any]:
        data = context.make_array(signature.args[array])(context, builder, value).data
        vector = ir.VectorType(ir.FloatType(), length).as_pointer()
        for k in range(count):
            index = builder.add(first, builder.mul(step, ir.Constant(step.type, k)))
            yield builder.bitcast(builder.gep(data, [index]), vector)

    voxels = pointers(0, tile, at, classes, _VOXELS, _CLASSES)
    first = builder.add(column, builder.mul(width, row))
    return list(voxels), list(pointers(3, rows, first, width, _CLASSES, _VOXELS))


def _shuffled(builder: Any, left: Any, right: Any, lanes: Iterable[int]) -> Any:
    chosen = list(lanes)
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(ir.IntType(32), len(chosen)), chosen))


def _joined(builder: Any, left: Any, right: Any) -> Any:
    return _shuffled(builder, left, right, range(left.type.count + right.type.count))


def _transposed(builder: Any, registers: list[Any]) -> list[Any]:
    """Four classes of the voxels j, j + 4, j + 8, j + 12 in register j, to 16 voxels of a class each; and back."""

    def mixed(left: Any, right: Any, *lane: int) -> Any:
        return _shuffled(builder, left, right, (start + n for start in range(0, _VOXELS, _CLASSES) for n in lane))

    a, b, c, d = registers
    low_ab, low_cd = mixed(a, b, 0, 16, 1, 17), mixed(c, d, 0, 16, 1, 17)
    high_ab, high_cd = mixed(a, b, 2, 18, 3, 19), mixed(c, d, 2, 18, 3, 19)
    pairs = (low_ab, low_cd), (high_ab, high_cd)
    return [mixed(left, right, *lane) for left, right in pairs for lane in ((0, 1, 16, 17), (2, 3, 18, 19))]


@numba.njit(**OPTIONS)
def _split_one(row: Any, c: Any, classes: Any, n: Any, out: Any) -> None:
    k = np.uint64(c)
    for i in range(n):
        out[i] = row[k]
        k += np.uint64(classes)


@numba.njit(**OPTIONS)
def _join_one(values: Any, c: Any, classes: Any, n: Any, row: Any) -> None:
    k = np.uint64(c)
    for i in range(n):
        row[k] = values[i]
        k += np.uint64(classes)
