"""Hard predictions of logits in either layout, and how far a prediction's contour lies from a reference's, compiled."""

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from medloss.kernels.numba.blocks import load_row
from medloss.kernels.numba.compilation import OPTIONS, compiled
from medloss.kernels.numba.distance import outside_distances
from medloss.kernels.numba.interleaved import load_interleaved
from medloss.kernels.numba.sums import flat_numbers
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


def contour_distances(
    prediction: Tensor,
    reference: Tensor,
    mask: Tensor | None,
    classes: int,
    spacings: Sequence[Sequence[float]],
    signed: Tensor | None,
) -> Tensor:
    """The mean distance in mm from the voxels of predicted contours to the reference's, `[B, C - 1]`.

    Args:
        prediction: int16 `[B, *spatial]`, 2D or 3D: the class of each voxel.
        reference: likewise; -1 for no class.
        mask: `[B, *spatial]` bool, where the prediction's contours count; None: everywhere.
        classes: C.
        spacings: mm, one per item.
        signed: `[B, C - 1, *spatial]`, the reference's signed distance map in float32; None: from the transform.
    """
    items, spatial = len(prediction), prediction.shape[1:]
    volume = (1,) * (3 - len(spatial)) + tuple(spatial)
    shape = (items, *volume)
    q, y = prediction.contiguous().view(shape).numpy(), reference.contiguous().view(shape).numpy()
    counted = np.empty((items, 0, 0, 0), np.uint8)
    if mask is not None:
        counted = mask.contiguous().view(shape).view(torch.uint8).numpy()
    maps = np.empty((items, classes - 1, 0, 0, 0), np.float32)
    if signed is not None:
        maps = signed.detach().float().contiguous().view(items, classes - 1, *volume).numpy()
    contours = np.empty((2, *shape), np.uint8)
    sums, counts = np.zeros((items, classes)), np.zeros((items, classes))
    # The corners of what is found of a class: the reference's contour, and voxels whose distance has to be computed.
    boxes = np.empty((items, classes, 2, 6), np.int64)
    boxes[..., :3], boxes[..., 3:] = np.iinfo(np.int64).max, -1

    def mark(begin: int, end: int) -> None:
        for item in range(begin, end):
            _mark(q[item], contours[0, item])
            _mark(y[item], contours[1, item])
            _collect(
                q[item], y[item], contours[0, item], contours[1, item], counted[item], maps[item],
                sums[item], counts[item], boxes[item],
            )  # fmt: skip

    def measure(begin: int, end: int) -> None:
        for number in range(begin, end):
            item, c = divmod(number, classes)
            found, wanted = boxes[item, c]
            if c == 0 or found[3] < 0:
                sums[item, c] = 0
            elif wanted[3] >= 0:
                low, high = np.minimum(found, wanted)[:3], np.maximum(found, wanted)[3:] + 1
                part: Any = (item, *(slice(a, b) for a, b in zip(low, high, strict=True)))
                contour = torch.from_numpy((contours[1][part] != 0) & (y[part] == c))
                flat = contour.view(1, 1, *contour.shape[3 - len(spatial) :])
                distance = outside_distances(flat, [spacings[item]]).view(contour.shape).numpy()
                closest = maps[item, max(c - 1, 0)] if signed is None else maps[(item, c - 1, *part[1:])]
                kept = counted[item] if mask is None else counted[part]
                sums[item, c] += _total(distance, q[part], y[part], contours[0][part], kept, closest, c)

    share_out(items, 1, mark)
    share_out(items * classes, 1, measure)
    return torch.from_numpy(sums[:, 1:] / np.maximum(counts[:, 1:], 1))


@compiled
def _mark(labels: Any, out: Any) -> None:
    """Where a face neighbour has another label."""
    planes, rows, row = labels.shape
    size = rows * row
    steps = np.empty(size, np.uint8)
    for z in range(planes):
        here, marks = labels[z].reshape(size), out[z].reshape(size)
        _fill(steps, 0)
        _fill(marks, 0)
        _differ(here[: size - 1], here[1:], steps)
        for y in range(1, rows + 1):
            steps[y * row - 1] = 0  # the next voxel is in another row
        _join(steps, marks)
        _join(steps[: size - 1], marks[1:])
        _differ(here[row:], here[: size - row], marks[row:])
        _differ(here[: size - row], here[row:], marks)
        if z > 0:
            _differ(here, labels[z - 1].reshape(size), marks)
        if z < planes - 1:
            _differ(here, labels[z + 1].reshape(size), marks)


@numba.njit(**OPTIONS)
def _fill(row: Any, value: Any) -> None:
    for x in range(row.shape[0]):
        row[x] = value


@numba.njit(**OPTIONS)
def _join(marks: Any, out: Any) -> None:
    for x in range(marks.shape[0]):
        out[x] |= marks[x]


@numba.njit(**OPTIONS)
def _differ(here: Any, there: Any, out: Any) -> None:
    for x in range(here.shape[0]):
        out[x] |= np.uint8(here[x] != there[x])


@compiled
def _collect(
    q: Any, y: Any, contour: Any, reference: Any, counted: Any, signed: Any, sums: Any, counts: Any, boxes: Any
) -> None:
    """Of an item, per class: contours' voxels, their distances as far as a map tells them, and boxes of the rest."""
    planes, rows, row = q.shape
    known = signed.size > 0
    for i in range(planes):
        for j in range(rows):
            for k in range(row):
                if reference[i, j, k] and y[i, j, k] > 0:
                    _enclose(boxes[y[i, j, k], 0], i, j, k)
                c = q[i, j, k]
                if contour[i, j, k] == 0 or c <= 0 or (counted.size > 0 and counted[i, j, k] == 0):
                    continue
                counts[c] += 1
                if known and y[i, j, k] != c:
                    sums[c] += max(signed[c - 1, i, j, k], np.float32(0))
                else:
                    _enclose(boxes[c, 1], i, j, k)


@numba.njit(**OPTIONS)
def _enclose(box: Any, i: Any, j: Any, k: Any) -> None:
    box[0], box[1], box[2] = min(box[0], i), min(box[1], j), min(box[2], k)
    box[3], box[4], box[5] = max(box[3], i), max(box[4], j), max(box[5], k)


@compiled
def _total(distance: Any, q: Any, y: Any, contour: Any, counted: Any, signed: Any, c: Any) -> Any:
    """The sum over a predicted contour's voxels in a box; with a map only those inside the reference are left."""
    planes, rows, row = q.shape
    known = signed.size > 0
    total = 0.0
    for i in range(planes):
        for j in range(rows):
            for k in range(row):
                if contour[i, j, k] == 0 or q[i, j, k] != c or (counted.size > 0 and counted[i, j, k] == 0):
                    continue
                if not known:
                    total += distance[i, j, k]
                elif y[i, j, k] == c:
                    total += min(distance[i, j, k], abs(signed[i, j, k]))
    return total
