"""Converts a block of voxels to float buffers, and a gradient back to the type of the tensors.

Target types are distinguished at run time: each has a separate loop over a view of the same bytes, so that a new type
of target compiles nothing.
"""

from typing import Any

import numba
import numpy as np
import torch
from numba.extending import overload

from medloss.kernels.numba.compilation import OPTIONS
from medloss.kernels.numba.elementary import bits_float, float_bits

#: The target's types that are read as they are; others share the bits of one of them.
KINDS = {
    torch.bool: 0,
    torch.uint8: 0,
    torch.int8: 1,
    torch.int16: 2,
    torch.uint16: 3,
    torch.int32: 4,
    torch.uint32: 5,
    torch.int64: 6,
    torch.uint64: 6,  # a label beyond int64 becomes negative: of no class, as it should be
    torch.float32: 7,
    torch.float64: 8,
    torch.bfloat16: 9,
    torch.float16: 10,
}
#: Bytes per number, by kind.
SIZES = (1, 1, 2, 2, 4, 4, 8, 4, 8, 2, 2)

_HALF_SCALE = np.float32(2.0**112)


@numba.njit(**OPTIONS)
def _short(bits: Any) -> Any:
    """A bfloat16's value."""
    return bits_float(np.int32(np.int32(bits) << 16))


@numba.njit(**OPTIONS)
def _half(bits: Any) -> Any:
    """A float16's value."""
    wide = np.int32(bits)
    size = np.int32((wide & 0x7FFF) << 13)
    special = np.int32(size | 0x7F800000)
    value = bits_float(special) if (wide & 0x7C00) == 0x7C00 else bits_float(size) * _HALF_SCALE
    return -value if wide & 0x8000 else value


@numba.njit(**OPTIONS)
def _integer_labels(values: Any, classes: Any, out: Any) -> None:
    for i in range(values.shape[0]):
        value = values[i]
        out[i] = np.int32(value) if (value >= 0) & (value < classes) else np.int32(-1)


@numba.njit(**OPTIONS)
def _float_labels(values: Any, classes: Any, out: Any) -> None:
    for i in range(values.shape[0]):
        value = values[i]
        label = np.int32(value) if (value >= 0) & (value < classes) else np.int32(-1)
        out[i] = label if label == value else np.int32(-1)


@numba.njit(**OPTIONS)
def _short_labels(values: Any, classes: Any, half: Any, out: Any) -> None:
    for i in range(values.shape[0]):
        value = _half(values[i]) if half else _short(values[i])
        label = np.int32(value) if (value >= 0) & (value < classes) else np.int32(-1)
        out[i] = label if label == value else np.int32(-1)


@numba.njit(**OPTIONS)
def load_labels(target: Any, kind: Any, offset: Any, n: Any, classes: Any, keep: Any, out: Any) -> None:
    """The class of each voxel of an index map, -1 for none."""
    size = SIZES[kind]
    row = target[offset * size : (offset + n) * size]
    if kind == 0:
        _integer_labels(row, classes, out)
    elif kind == 1:
        _integer_labels(row.view(np.int8), classes, out)
    elif kind == 2:
        _integer_labels(row.view(np.int16), classes, out)
    elif kind == 3:
        _integer_labels(row.view(np.uint16), classes, out)
    elif kind == 4:
        _integer_labels(row.view(np.int32), classes, out)
    elif kind == 5:
        _integer_labels(row.view(np.uint32), classes, out)
    elif kind == 6:
        _integer_labels(row.view(np.int64), classes, out)
    elif kind == 7:
        _float_labels(row.view(np.float32), classes, out)
    elif kind == 8:
        _float_labels(row.view(np.float64), classes, out)
    else:
        _short_labels(row.view(np.uint16), classes, kind == 10, out)
    for i in range(keep.shape[0]):
        out[i] = out[i] if keep[i] else np.int32(-1)


@numba.njit(**OPTIONS)
def class_map(labels: Any, label: Any, n: Any, y: Any) -> None:
    """1 where a voxel is of a class, else 0."""
    number = np.int32(label)
    one, zero = y.dtype.type(1), y.dtype.type(0)
    for i in range(n):
        y[i] = one if labels[i] == number else zero


@numba.njit(**OPTIONS)
def _convert(values: Any, out: Any) -> None:
    for i in range(values.shape[0]):
        out[i] = values[i]


@numba.njit(**OPTIONS)
def _convert_short(values: Any, half: Any, out: Any) -> None:
    for i in range(values.shape[0]):
        out[i] = _half(values[i]) if half else _short(values[i])


@numba.njit(**OPTIONS)
def keep_only(keep: Any, out: Any) -> None:
    """Zeros where a voxel does not count; `keep` is empty if all do."""
    zero = out.dtype.type(0)
    for i in range(keep.shape[0]):
        out[i] = out[i] if keep[i] else zero


@numba.njit(**OPTIONS)
def load_map(target: Any, kind: Any, offset: Any, n: Any, keep: Any, y: Any) -> None:
    """The map of a class."""
    size = SIZES[kind]
    row = target[offset * size : (offset + n) * size]
    if kind == 0:
        _convert(row, y)
    elif kind == 1:
        _convert(row.view(np.int8), y)
    elif kind == 2:
        _convert(row.view(np.int16), y)
    elif kind == 3:
        _convert(row.view(np.uint16), y)
    elif kind == 4:
        _convert(row.view(np.int32), y)
    elif kind == 5:
        _convert(row.view(np.uint32), y)
    elif kind == 6:
        _convert(row.view(np.int64), y)
    elif kind == 7:
        _convert(row.view(np.float32), y)
    elif kind == 8:
        _convert(row.view(np.float64), y)
    else:
        _convert_short(row.view(np.uint16), kind == 10, y)
    keep_only(keep, y)


@numba.njit(**OPTIONS)
def round_short(value: Any) -> Any:
    """The nearest bfloat16's bits, the even one of two."""
    bits = float_bits(value)
    rounded = np.int32(np.int32(bits + 0x7FFF) + np.int32((bits >> 16) & 1))
    quiet = np.int32(bits | 0x400000)
    return np.uint16(np.int32((rounded if value == value else quiet) >> 16) & 0xFFFF)


def load_row(row: Any, out: Any) -> None:
    """Logits, to floats."""
    raise NotImplementedError


def from_logit(value: Any) -> Any:
    """A logit as a float."""
    raise NotImplementedError


def to_logit(value: Any, row: Any) -> Any:
    """A float in the type of a row of logits."""
    raise NotImplementedError


def store_difference(minuend: Any, left: Any, right: Any, row: Any) -> None:
    """`minuend - left * right`, in the logits' type."""
    raise NotImplementedError


@overload(from_logit, jit_options=OPTIONS)
def _from_logit(value: Any) -> Any:
    def short(value: Any) -> Any:
        return _short(value)

    def same(value: Any) -> Any:
        return value

    return short if value == numba.uint16 else same


@overload(to_logit, jit_options=OPTIONS)
def _to_logit(value: Any, row: Any) -> Any:
    def short(value: Any, row: Any) -> Any:
        return round_short(value)

    def same(value: Any, row: Any) -> Any:
        return value

    return short if row.dtype == numba.uint16 else same


@overload(load_row, jit_options=OPTIONS)
def _load_row(row: Any, out: Any) -> Any:
    def short(row: Any, out: Any) -> None:
        for i in range(row.shape[0]):
            out[i] = _short(row[i])

    def same(row: Any, out: Any) -> None:
        for i in range(row.shape[0]):
            out[i] = row[i]

    return short if row.dtype == numba.uint16 else same


@overload(store_difference, jit_options=OPTIONS)
def _store_difference(minuend: Any, left: Any, right: Any, row: Any) -> Any:
    def short(minuend: Any, left: Any, right: Any, row: Any) -> None:
        for i in range(row.shape[0]):
            row[i] = round_short(minuend[i] - left[i] * right[i])

    def same(minuend: Any, left: Any, right: Any, row: Any) -> None:
        for i in range(row.shape[0]):
            row[i] = minuend[i] - left[i] * right[i]

    return short if row.dtype == numba.uint16 else same
