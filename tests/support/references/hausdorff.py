"""The three estimates of the Hausdorff distance: distance maps, erosions, balls."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .common import Problem, Spacing, box_offsets, reduce_items, reference, shifted
from .complexstep import Array, maximum, minimum, relu
from .complexstep import log as logarithm
from .distances import boundary_distance_map


def soft_threshold(x: Array) -> Array:
    return relu(x - 0.5) / 0.5


@reference
def hausdorff_dt(problem: Problem, *, alpha: float = 2.0, one_sided: bool = False, log: bool = False) -> Any:
    problem.require_hard_target()

    def value(b: int, c: int) -> Any:
        y, p, spacing = problem.y[b, c], problem.p[b, c], problem.spacing[b]
        if problem.distance_map is not None:
            distance = np.abs(problem.distance_map[b, c]) ** alpha
        else:
            distance = boundary_distance_map(y == 1, spacing) ** alpha
        if not one_sided:
            distance = distance + boundary_distance_map(problem.hard[b, c], spacing) ** alpha
        mean = (problem.voxel_weight[b] * (p - y) ** 2 * distance)[problem.counted[b]].mean()
        return logarithm(1 + mean) if log else mean

    return reduce_items(problem, value)


@reference
def log_hausdorff_dt(problem: Problem, **options: Any) -> Any:
    """Options as `hausdorff_dt`."""
    return hausdorff_dt.__wrapped__(problem, **options, log=True)  # type: ignore[attr-defined]


def eroded_axes(step: int, spacing: Spacing) -> list[int]:
    """The axes of an erosion: axis a at every n-th step, n the axis' spacing in smallest spacings, half up."""
    every = [math.floor(s / min(spacing) + 0.5 + 1e-6) for s in spacing]
    return [axis for axis, n in enumerate(every) if step % n == 0]


def cross_mean(x: Array, axes: list[int]) -> Array:
    """The mean of each voxel and its two neighbours along every one of some axes, with zeros around the volume."""
    total = x
    for axis in axes:
        for step in (-1, 1):
            offset = [0] * x.ndim
            offset[axis] = step
            total = total + shifted(x, offset, "constant")
    return total / (2 * len(axes) + 1)


@reference
def hausdorff_er(problem: Problem, *, alpha: float = 2.0, erosions: int = 10, renormalize: bool = False) -> Any:
    problem.require_hard_target()

    def value(b: int, c: int) -> Any:
        counted = problem.counted[b]
        error = (problem.p[b, c] - problem.y[b, c]) ** 2
        total = 0.0
        for k in range(1, erosions + 1):
            error = soft_threshold(cross_mean(error, eroded_axes(k, problem.spacing[b])))
            if renormalize:
                least, largest = minimum(error[counted]), maximum(error[counted])
                if largest.real > least.real:
                    error = (error - least) / (largest - least)
            total = total + (problem.voxel_weight[b] * error)[counted].sum() * k**alpha
        return total / counted.sum()

    return reduce_items(problem, value)


def reach(radius: float, spacing: Spacing) -> list[int]:
    """The ball's voxels on either side of its centre along each axis."""
    return [math.floor(radius * (1 + 1e-6) / s) for s in spacing]


def ball_offsets(radius: float, spacing: Spacing) -> list[tuple[int, ...]]:
    def distance(offset: tuple[int, ...]) -> float:
        return math.sqrt(sum((o * s) ** 2 for o, s in zip(offset, spacing, strict=True)))

    inside = radius * (1 + 1e-6)
    return [offset for offset in box_offsets(reach(radius, spacing)) if distance(offset) <= inside]


def ball_mean(x: Array, offsets: list[tuple[int, ...]]) -> Array:
    total = np.zeros_like(x)
    for offset in offsets:
        total = total + shifted(x, offset, "edge")
    return total / len(offsets)


@reference
def hausdorff_cv(problem: Problem, *, alpha: float = 2.0, radii: Sequence[float] = (3, 6, 9, 12, 15, 18)) -> Any:
    problem.require_hard_target()

    def value(b: int, c: int) -> Any:
        y, p, spacing = problem.y[b, c], problem.p[b, c], problem.spacing[b]
        over = (p - y) ** 2 * p
        under = (p - y) ** 2 * y
        total = 0.0
        for r in radii:
            if any(2 * n + 1 > size for n, size in zip(reach(r, spacing), y.shape, strict=True)):
                continue
            ball = ball_offsets(r, spacing)
            at_voxel = (
                soft_threshold(ball_mean(1 - y, ball)) * over
                + soft_threshold(ball_mean(p, ball)) * over
                + soft_threshold(ball_mean(1 - p, ball)) * under
                + soft_threshold(ball_mean(y, ball)) * under
            )
            total = total + r**alpha * (problem.voxel_weight[b] * at_voxel)[problem.counted[b]].sum()
        return total / problem.counted[b].sum()

    return reduce_items(problem, value)
