"""Overlap with centre lines: soft skeletons by minima and maxima over listed neighbours."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from .common import Problem, Spacing, box_offsets, reduce_regions, reference
from .complexstep import Array, relu
from .hausdorff import eroded_axes


def extreme(x: Array, offsets: Iterable[tuple[int, ...]], sign: int) -> Array:
    """The largest (sign 1) or smallest (-1) of each voxel's neighbours inside the image."""
    padded = np.pad(x, 1, constant_values=-sign * np.inf)
    windows = [tuple(slice(1 + o, 1 + o + n) for o, n in zip(offset, x.shape, strict=True)) for offset in offsets]
    neighbours = np.stack([padded[window] for window in windows])
    chosen = (sign * neighbours.real).argmax(axis=0)
    return np.take_along_axis(neighbours, chosen[None], axis=0)[0]


def skeleton(x: Array, iter_: int, spacing: Spacing) -> Array:
    k_of_x = np.zeros_like(x)
    for step in range(1, iter_ + 2):
        axes = eroded_axes(step, spacing)
        box = list(box_offsets([int(axis in axes) for axis in range(x.ndim)]))
        smaller = extreme(x, [offset for offset in box if np.abs(offset).sum() <= 1], -1)
        rest = relu(x - extreme(smaller, box, 1))
        k_of_x = k_of_x + relu(rest - k_of_x * rest)
        x = smaller
    return k_of_x


@reference
def cldice(problem: Problem, *, iter_: int = 3, smooth: float = 1.0) -> Any:
    problem.require_hard_target()

    def skeletons(maps: Array, items: list[int], c: int) -> Array:
        each = [skeleton(maps[b, c], iter_, problem.spacing[b])[problem.counted[b]] for b in items]
        return np.concatenate(each)

    def value(items: list[int], c: int) -> Any:
        y, p = problem.voxels(problem.y, items, c), problem.voxels(problem.p, items, c)
        w = problem.weights(items)
        of_p, of_y = w * skeletons(problem.p, items, c), w * skeletons(problem.y, items, c)
        precision = ((of_p * y).sum() + smooth) / (of_p.sum() + smooth) if of_p.sum() + smooth else 0.0
        sensitivity = ((of_y * p).sum() + smooth) / (of_y.sum() + smooth) if of_y.sum() + smooth else 0.0
        if precision + sensitivity == 0:
            return 1.0
        return 1 - 2 * precision * sensitivity / (precision + sensitivity)

    return reduce_regions(problem, value)
