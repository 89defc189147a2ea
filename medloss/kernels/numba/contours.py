"""How far a prediction's contours lie from a reference's, from labels, compiled."""

import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from medloss.kernels.numba.compilation import OPTIONS, compiled
from medloss.kernels.numba.distance import outside_distances
from medloss.kernels.numba.vector_ops import share_out

#: Looks at voxels that take as long as the transform of one.
_PER_VOXEL = 4


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
    maps = [np.empty((classes - 1, 0, 0, 0), np.float32)] * items
    if signed is not None:
        # Item by item: without class 0 the whole is not contiguous, and would be copied.
        maps = [item.contiguous().view(classes - 1, *volume).numpy() for item in signed.detach().float()]
    contours = np.empty((2, *shape), np.uint8)
    sums, counts, work = np.zeros((items, classes)), np.zeros((items, classes)), np.zeros((items, classes))
    # The corners of what is found of a class: the reference's contour, and voxels whose distance has to be computed.
    boxes = np.empty((items, classes, 2, 6), np.int64)
    boxes[..., :3], boxes[..., 3:] = np.iinfo(np.int64).max, -1

    def mark(begin: int, end: int) -> None:
        for item in range(begin, end):
            _mark(q[item], contours[0, item])
            _mark(y[item], contours[1, item])
            _collect(
                q[item], y[item], contours[0, item], contours[1, item], counted[item], maps[item],
                sums[item], counts[item], work[item], boxes[item],
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
                kept = counted[item] if mask is None else counted[part]
                closest = maps[item][c - 1] if signed is None else maps[item][(c - 1, *part[1:])]
                of_class = q[part], y[part], contours[0][part], kept, closest, c
                s_z, s_y, s_x = [1.0] * (3 - len(spatial)) + list(spacings[item])
                # Rows within the distances: those of discs in a volume; in an image those on both sides, at most.
                rows = work[item, c] * math.pi / (s_z * s_y)
                if volume[0] == 1:
                    rows = 2 * math.sqrt(counts[item, c] * work[item, c]) / s_y
                if signed is not None and rows < _PER_VOXEL * closest.size:
                    squares = np.array([s_z * s_z, s_y * s_y, s_x * s_x]).astype(np.float32)
                    sums[item, c] += _search(contours[1][part], *of_class, squares)
                    continue
                contour = torch.from_numpy((contours[1][part] != 0) & (y[part] == c))
                flat = contour.view(1, 1, *contour.shape[3 - len(spatial) :])
                distance = outside_distances(flat, [spacings[item]]).view(contour.shape).numpy()
                sums[item, c] += _total(distance, *of_class)

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
    q: Any,
    y: Any,
    contour: Any,
    reference: Any,
    counted: Any,
    signed: Any,
    sums: Any,
    counts: Any,
    work: Any,
    boxes: Any,
) -> None:
    """Of an item, per class: contours' voxels, their distances as far as a map tells them, and boxes of the rest.

    The squares of the distances that bound those of the rest are added to `work`.
    """
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
                    outside = signed[c - 1, i, j, k]
                    sums[c] += np.float32(0) if outside < 0 else outside  # NaN stays
                else:
                    _enclose(boxes[c, 1], i, j, k)
                    work[c] += signed[c - 1, i, j, k] ** 2 if known else np.float32(0)


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
                    bound = abs(signed[i, j, k])
                    total += distance[i, j, k] if distance[i, j, k] < bound else bound  # NaN stays
    return total


@compiled
def _search(reference: Any, q: Any, y: Any, contour: Any, counted: Any, signed: Any, c: Any, squares: Any) -> Any:
    """`_total`, from the distances along rows: outwards from each voxel, as far as the map allows."""
    planes, rows, row = q.shape
    along = np.empty((planes, rows, row), np.float32)
    steps = np.empty(row, np.int64)
    for i in range(planes):
        for j in range(rows):
            _along_row(reference[i, j], y[i, j], c, squares[2], steps, along[i, j])
    total: Any = 0.0
    for i in range(planes):
        for j in range(rows):
            for k in range(row):
                kept = counted.size == 0 or counted[i, j, k] != 0
                if contour[i, j, k] and q[i, j, k] == c and y[i, j, k] == c and kept:
                    bound = abs(signed[i, j, k])
                    distance = np.float32(math.sqrt(_nearest(along, i, j, k, bound * bound, squares)))
                    total += distance if distance < bound else bound  # NaN stays
    return total


@numba.njit(**OPTIONS)
def _along_row(reference: Any, y: Any, c: Any, square: Any, steps: Any, out: Any) -> None:
    """The squared distance to the class's contour in a row."""
    n = out.shape[0]
    none: Any = np.int64(1 << 30)
    count = none
    for k in range(n):
        count = 0 if (reference[k] != 0) & (y[k] == c) else min(count + 1, none)
        steps[k] = count
    count = none
    for k in range(n - 1, -1, -1):
        count = min(count + 1, steps[k])
        distance = np.float32(count)
        out[k] = distance * distance * square if count < none else np.float32(np.inf)


@numba.njit(**OPTIONS)
def _nearest(along: Any, i: Any, j: Any, k: Any, bound: Any, squares: Any) -> Any:
    """The least squared distance, and at least all that are below a bound."""
    planes, rows = along.shape[0], along.shape[1]
    best = np.float32(np.inf)
    z = 0
    while z < planes:
        by_z = np.float32(z * z) * squares[0]
        if by_z >= best or by_z > bound:
            break
        t = 0
        while t < rows:
            by_y = np.float32(t * t) * squares[1]
            if by_y + by_z >= best or by_y + by_z > bound:
                break
            for plane in range(i - z, i + z + 1, max(2 * z, 1)):
                for line in range(j - t, j + t + 1, max(2 * t, 1)):
                    if 0 <= plane < planes and 0 <= line < rows:
                        best = min(best, along[plane, line, k] + by_y + by_z)
            t += 1
        z += 1
    return best
