"""A softmax's probabilities, one map per class, and the way back to the logits' type and layout, compiled."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from medloss.kernels.numba.blocks import load_row, store_difference
from medloss.kernels.numba.compilation import compiled
from medloss.kernels.numba.interleaved import load_interleaved, store_interleaved
from medloss.kernels.numba.sums import flat_numbers
from medloss.kernels.numba.terms import softmax_block, subtract_product
from medloss.kernels.numba.vector_ops import share_out
from medloss.kernels.sum_spec import sum_type

#: Numbers in the buffers of a block, which fit the second cache; the most voxels of a block; numbers per task.
_NUMBERS, _MOST, _TASK = 1 << 15, 1024, 1 << 18


def probabilities(logits: Tensor) -> Tensor:
    """The softmax of `[B, C, N]`, contiguous or channels-last, as contiguous maps in the type of the sums."""
    logits = logits.float() if logits.dtype == torch.float16 else logits
    out = torch.empty(logits.shape, dtype=sum_type(logits), device="cpu")
    maps = out.numpy()
    numbers, interleaved = flat_numbers(logits), not logits.is_contiguous()
    _each_chunk(logits, lambda *chunk: _softmax(numbers, interleaved, *chunk, maps))
    return out


def logit_gradients(by_probability: Tensor, factors: Tensor, p: Tensor, like: Tensor) -> Tensor:
    """The logits' gradient, from that of the probabilities: `factors` `[B, C']` times `by_probability` `[B, C', N]`.

    Args:
        by_probability: of the last C' classes, contiguous.
        factors: one per item and class.
        p: what `probabilities` gave.
        like: the logits, whose layout and type the result has.
    """
    half = like.dtype == torch.float16
    gradient = torch.empty_like(like, dtype=torch.float32 if half else like.dtype)
    out, interleaved = flat_numbers(gradient), not like.is_contiguous()
    arrays = by_probability.numpy(), np.ascontiguousarray(factors.numpy().astype(p.numpy().dtype)), p.numpy()
    _each_chunk(like, lambda *chunk: _gradients(*arrays, *chunk, interleaved, out))
    return gradient.to(like.dtype)


def _each_chunk(logits: Tensor, function: Any) -> None:
    """Call `function(item, begin, end, buffers)` for every chunk of voxels, in several threads."""
    items, classes, voxels = logits.shape
    block = max(256, min(_MOST, _NUMBERS // classes // 256 * 256))
    chunk = max(block, _TASK // classes // block * block)
    chunks = -(-voxels // chunk)
    real = np.float64 if logits.dtype == torch.float64 else np.float32

    def run(begin: int, end: int) -> None:
        buffers = np.empty((2 * classes, block), real), np.empty((3, block), real)
        for number in range(begin, end):
            item, part = divmod(number, chunks)
            function(item, part * chunk, min((part + 1) * chunk, voxels), *buffers)

    share_out(items * chunks, 1, run)


@compiled
def _softmax(logits: Any, interleaved: Any, item: Any, begin: Any, end: Any, wide: Any, narrow: Any, out: Any) -> None:
    classes, voxels, block = out.shape[1], out.shape[2], wide.shape[1]
    everything = np.empty(0, np.bool_)
    for start in range(begin, end, block):
        n = min(block, end - start)
        if interleaved:
            load_interleaved(logits, (item * voxels + start) * classes, classes, n, wide, wide[classes:].reshape(-1))
        else:
            for c in range(classes):
                offset = (item * classes + c) * voxels + start
                load_row(logits[offset : offset + n], wide[c])
        softmax_block(
            classes, n, everything, False, wide[:classes], wide[classes:], narrow[0], narrow[1], narrow[2]
        )  # fmt: skip
        inverse = narrow[1]
        for c in range(classes):
            exponential, row = wide[classes + c], out[item, c, start : start + n]
            for i in range(n):
                row[i] = exponential[i] * inverse[i]


@compiled
def _gradients(
    by_p: Any, factors: Any, p: Any, item: Any, begin: Any, end: Any, wide: Any, narrow: Any, interleaved: Any, out: Any
) -> None:
    """E - p sum(E), with E the gradient for p times p."""
    classes, voxels, block = p.shape[1], p.shape[2], wide.shape[1]
    first = classes - by_p.shape[1]
    shared = narrow[0]
    for start in range(begin, end, block):
        n = min(block, end - start)
        for i in range(n):
            shared[i] = 0
        for c in range(classes):
            product = wide[c]
            if c < first:
                for i in range(n):
                    product[i] = 0
                continue
            factor, row, share = factors[item, c - first], by_p[item, c - first, start : start + n], p[item, c]
            for i in range(n):
                value = row[i] * factor * share[start + i]
                product[i] = value
                shared[i] += value
        for c in range(classes):
            share = p[item, c, start : start + n]
            if interleaved:
                subtract_product(share, shared, n, wide[c])
            else:
                offset = (item * classes + c) * voxels + start
                store_difference(wide[c], share, shared, out[offset : offset + n])
        if interleaved:
            store_interleaved(wide, classes, n, out, (item * voxels + start) * classes, wide[classes:].reshape(-1))
