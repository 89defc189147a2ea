"""Labels and masks of the classes, from logits in either layout and from index maps of any type, compiled."""

import math
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from medloss.kernels.numba.blocks import KINDS, load_labels, load_row
from medloss.kernels.numba.compilation import OPTIONS, compiled
from medloss.kernels.numba.interleaved import load_interleaved
from medloss.kernels.numba.sums import flat_bytes, flat_numbers
from medloss.kernels.numba.vector_ops import share_out

#: Voxels per block, whose buffers fit the first cache for few classes, and per task of a thread.
_BLOCK, _CHUNK = 1024, 1 << 17


def first_largest(logits: Tensor) -> Tensor:
    """The first class of the largest logit, or of a NaN, int16 `[B, N]`; `logits` as in `sum_spec`."""
    items, classes, voxels = logits.shape
    if logits.dtype == torch.float16:
        logits = logits.float()
    numbers, interleaved = flat_numbers(logits), not logits.is_contiguous()
    winner = torch.empty(items, voxels, dtype=torch.int16, device="cpu")
    out = winner.numpy()
    real = np.float64 if logits.dtype == torch.float64 else np.float32
    chunk = -(-max(_BLOCK, _CHUNK // classes) // _BLOCK) * _BLOCK
    chunks = -(-voxels // chunk)

    def run(begin: int, end: int) -> None:
        wide = np.empty((2 * classes, _BLOCK), real)
        for number in range(begin, end):
            item, part = divmod(number, chunks)
            stop = min((part + 1) * chunk, voxels)
            _first_largest(numbers, interleaved, item, classes, voxels, part * chunk, stop, wide, out[item])

    share_out(items * chunks, 1, run)
    return winner


@compiled
def _first_largest(
    logits: Any, interleaved: Any, item: Any, classes: Any, voxels: Any, begin: Any, end: Any, wide: Any, out: Any
) -> None:
    for start in range(begin, end, _BLOCK):
        n = min(_BLOCK, end - start)
        if interleaved:
            load_interleaved(logits, (item * voxels + start) * classes, classes, n, wide, wide[classes:].reshape(-1))
        else:
            for c in range(classes):
                offset = (item * classes + c) * voxels + start
                load_row(logits[offset : offset + n], wide[c])
        labels, best = out[start : start + n], wide[classes]
        for i in range(n):
            best[i] = wide[0, i]
            labels[i] = 0
        for c in range(1, classes):
            _raise_best(wide[c], np.int16(c), best, labels)


@numba.njit(**OPTIONS)
def _raise_best(z: Any, c: Any, best: Any, labels: Any) -> None:
    for i in range(labels.shape[0]):
        # "Not at most" lets a NaN win, which nothing follows.
        better = (not (z[i] <= best[i])) & (best[i] == best[i])
        labels[i] = c if better else labels[i]
        best[i] = z[i] if better else best[i]


def target_labels(target: Tensor, classes: int, ignored: int | None) -> Tensor:
    """The class of each voxel of an index map of any type, int16, in its shape; -1 for none, and where ignored."""
    out = torch.empty(target.shape, dtype=torch.int16, device="cpu")
    values, labels, kind = flat_bytes(target.contiguous()), out.view(-1).numpy(), KINDS[target.dtype]
    none = _class_ignored(ignored, classes)
    share_out(
        labels.size, _CHUNK, lambda begin, end: _target_labels(values, kind, classes, none, begin, end, labels)
    )  # fmt: skip
    return out


@compiled
def _target_labels(target: Any, kind: Any, classes: Any, ignored: Any, begin: Any, end: Any, out: Any) -> None:
    everything, wide = np.empty(0, np.uint8), np.empty(_BLOCK, np.int32)
    none = np.int32(ignored)
    for start in range(begin, end, _BLOCK):
        n = min(_BLOCK, end - start)
        load_labels(target, kind, start, n, classes, everything, wide[:n])
        for i in range(n):
            out[start + i] = np.int16(wide[i] if wide[i] != none else np.int32(-1))


def _class_ignored(ignored: int | None, classes: int) -> int:
    """The class of which no voxel counts; -1 for none."""
    return -1 if ignored is None or not 0 <= ignored < classes else int(ignored)


def class_masks(target: Tensor, classes: int, ignored: int | None) -> Tensor:
    """Where the voxels of each class are, bool `[B, C, *spatial]`, from an index map `[B, 1, *spatial]` of any type."""
    items, voxels = len(target), math.prod(target.shape[2:])
    out = torch.empty(items, classes, *target.shape[2:], dtype=torch.bool, device="cpu")
    values, masks = flat_bytes(target.contiguous()), out.view(items, classes, voxels).numpy()
    none = _class_ignored(ignored, classes)
    parts = -(-voxels // _CHUNK)

    def write(begin: int, end: int) -> None:
        for number in range(begin, end):
            item, part = divmod(number, parts)
            stop = min((part + 1) * _CHUNK, voxels)
            _class_masks(values, KINDS[target.dtype], none, item * voxels, part * _CHUNK, stop, masks[item])

    share_out(items * parts, 1, write)
    return out


@compiled
def _class_masks(target: Any, kind: Any, ignored: Any, offset: Any, begin: Any, end: Any, out: Any) -> None:
    everything, labels = np.empty(0, np.uint8), np.empty(_BLOCK, np.int32)
    for start in range(begin, end, _BLOCK):
        n = min(_BLOCK, end - start)
        load_labels(target, kind, offset + start, n, out.shape[0], everything, labels[:n])
        for c in range(out.shape[0]):
            label = np.int32(c if c != ignored else -2)
            row = out[c, start : start + n]
            for i in range(n):
                row[i] = labels[i] == label
