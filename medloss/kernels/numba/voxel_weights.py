"""Weights of voxels from distance maps and labels, compiled: with no map in between."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from medloss.kernels.numba.compilation import compiled
from medloss.kernels.numba.vector_ops import share_out

#: Voxels per task of a thread.
_VOXELS = 1 << 16


def penalty_weight(signed: Tensor, joint: bool, dtype: torch.dtype) -> Tensor:
    """One plus `maps.penalty_map` of signed distances `[B, K, *spatial]`.

    Args:
        signed: float32 or float64; channels may have been left out.
        joint: whether the largest penalty of all K maps is wanted, `[B, 1, *spatial]`.
        dtype: of the result.
    """
    items, maps = signed.shape[:2]
    lines = signed.detach().flatten(2)
    out = torch.empty(items, 1 if joint else maps, *signed.shape[2:], dtype=dtype, device="cpu")
    numbers, results = [[line.numpy() for line in item] for item in lines], out.flatten(2).numpy()
    bounds = np.zeros((items, maps, 2), lines.numpy().dtype)
    voxels = lines.shape[2]
    parts = -(-voxels // _VOXELS)

    def bound(begin: int, end: int) -> None:
        for number in range(begin, end):
            item, k = divmod(number, maps)
            _bound(numbers[item][k], bounds[item, k])

    def write(begin: int, end: int) -> None:
        for number in range(begin, end):
            item, part = divmod(number, parts)
            chunk = slice(part * _VOXELS, min((part + 1) * _VOXELS, voxels))
            for k in range(maps):
                row = results[item, 0 if joint else k, chunk]
                _weigh(numbers[item][k][chunk], bounds[item, k], joint and k > 0, row)

    share_out(items * maps, 1, bound)
    share_out(items * parts, 1, write)
    return out


@compiled
def _bound(signed: Any, out: Any) -> None:
    """The largest distance inside and outside, without NaN, which no comparison holds for."""
    low = high = signed.dtype.type(0)
    for i in range(signed.shape[0]):
        s = signed[i]
        low = s if s < low else low
        high = s if s > high else high
    out[0], out[1] = -low, high


@compiled
def _weigh(signed: Any, bounds: Any, more: Any, out: Any) -> None:
    """One plus the penalty; where there are `more` maps, the larger one. NaN stays."""
    inside, outside, zero = bounds[0], bounds[1], signed.dtype.type(0)
    one = out.dtype.type(1)
    if more:
        for i in range(out.shape[0]):
            s = signed[i]
            largest = outside if s > zero else inside
            weight = one + out.dtype.type((largest - abs(s)) / largest if s != zero else zero)
            out[i] = out[i] if (out[i] >= weight) | (out[i] != out[i]) else weight
    else:
        for i in range(out.shape[0]):
            s = signed[i]
            largest = outside if s > zero else inside
            out[i] = one + out.dtype.type((largest - abs(s)) / largest if s != zero else zero)


def wrong_weight(prediction: Tensor, reference: Tensor, factors: Tensor) -> Tensor:
    """One plus an item's factor where two label maps differ.

    Args:
        prediction: labels, `[B, 1, *spatial]`, contiguous.
        reference: labels of the same type.
        factors: `[B]`.
    """
    out = torch.empty(prediction.shape, dtype=factors.dtype, device="cpu")
    q, y, results, values = (tensor.flatten(1).numpy() for tensor in (prediction, reference, out, factors[:, None]))
    voxels = q.shape[1]
    parts = -(-voxels // _VOXELS)

    def work(begin: int, end: int) -> None:
        for number in range(begin, end):
            item, part = divmod(number, parts)
            chunk = slice(part * _VOXELS, min((part + 1) * _VOXELS, voxels))
            _weigh_wrong(q[item, chunk], y[item, chunk], values[item], results[item, chunk])

    share_out(len(q) * parts, 1, work)
    return out


@compiled
def _weigh_wrong(q: Any, y: Any, factor: Any, out: Any) -> None:
    one = out.dtype.type(1)
    more = one + factor[0]
    for i in range(out.shape[0]):
        out[i] = more if q[i] != y[i] else one


def keep_large(error: Tensor, threshold: float) -> int:
    """Set the errors `[B, C, *spatial]` to 0 that are at most a share of their item's largest; how many are left."""
    lines = error.view(len(error), -1).numpy()
    parts = -(-lines.shape[1] // _VOXELS)
    largest, left = np.zeros((len(lines), parts), lines.dtype), np.zeros((len(lines), parts), np.int64)

    def chunks(begin: int, end: int) -> Any:
        for number in range(begin, end):
            item, part = divmod(number, parts)
            yield item, part, lines[item, part * _VOXELS : (part + 1) * _VOXELS]

    def find(begin: int, end: int) -> None:
        bounds = np.empty(2, lines.dtype)
        for item, part, chunk in chunks(begin, end):
            _bound(chunk, bounds)
            largest[item, part] = bounds[1]

    def keep(begin: int, end: int) -> None:
        for item, part, chunk in chunks(begin, end):
            left[item, part] = _keep_large(chunk, lines.dtype.type(threshold) * largest[item].max())

    share_out(len(lines) * parts, 1, find)
    share_out(len(lines) * parts, 1, keep)
    return int(left.sum())


@compiled
def _keep_large(error: Any, bound: Any) -> Any:
    left, zero = 0, error.dtype.type(0)
    for i in range(error.shape[0]):
        # "Not at most" keeps NaN.
        kept = not (error[i] <= bound)
        left += kept
        error[i] = error[i] if kept else zero
    return left
