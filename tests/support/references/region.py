"""Losses of a few sums over the counted voxels of an item (or of the batch) and a class."""

from typing import Any

from .common import Problem, reduce_regions, reference
from .complexstep import Array, absolute, clamp_min, log_cosh, power

FLOOR = 1e-7


def hits(y: Array, p: Array, w: Array, soft_label: bool) -> Any:
    """TP."""
    return (w * (p + y - absolute(p - y)) / 2).sum() if soft_label else (w * y * p).sum()


def overlap(
    y: Array,
    p: Array,
    smooth_nr: float = 1.0,
    smooth_dr: float = 1.0,
    squared_pred: bool = False,
    jaccard: bool = False,
    soft_label: bool = False,
    *,
    w: Array,
) -> Any:
    """D of a region from its voxels, each of which counts w times."""
    true_positive = hits(y, p, w, soft_label and not squared_pred)
    both = (w * y**2).sum() + (w * p**2).sum() if squared_pred else (w * y).sum() + (w * p).sum()
    if jaccard:
        both = 2 * (both - true_positive)
    return (2 * true_positive + smooth_nr) / (both + smooth_dr)


def tversky_index(
    y: Array, p: Array, w: Array, alpha: float, beta: float, smooth_nr: float, smooth_dr: float, soft_label: bool
) -> Any:
    true_positive = hits(y, p, w, soft_label)
    false_positive = (w * p).sum() - true_positive
    false_negative = (w * y).sum() - true_positive
    weighted = true_positive + alpha * false_positive + beta * false_negative
    return (true_positive + smooth_nr) / (weighted + smooth_dr)


@reference
def dice(problem: Problem, **options: Any) -> Any:
    """Options as `overlap`."""

    def value(items: list[int], c: int) -> Any:
        y, p = problem.voxels(problem.y, items, c), problem.voxels(problem.p, items, c)
        return 1 - overlap(y, p, **options, w=problem.weights(items))

    return reduce_regions(problem, value)


@reference
def log_cosh_dice(problem: Problem, **options: Any) -> Any:
    """Options as `overlap`."""

    def value(items: list[int], c: int) -> Any:
        y, p = problem.voxels(problem.y, items, c), problem.voxels(problem.p, items, c)
        return log_cosh(1 - overlap(y, p, **options, w=problem.weights(items)))

    return reduce_regions(problem, value)


@reference
def tversky(
    problem: Problem,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth_nr: float = 1.0,
    smooth_dr: float = 1.0,
    soft_label: bool = False,
) -> Any:
    def value(items: list[int], c: int) -> Any:
        y, p = problem.voxels(problem.y, items, c), problem.voxels(problem.p, items, c)
        return 1 - tversky_index(y, p, problem.weights(items), alpha, beta, smooth_nr, smooth_dr, soft_label)

    return reduce_regions(problem, value)


@reference
def focal_tversky(
    problem: Problem,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 4 / 3,
    inverse_gamma: bool = True,
    smooth_nr: float = 1.0,
    smooth_dr: float = 1.0,
    soft_label: bool = False,
) -> Any:
    exponent = 1 / gamma if inverse_gamma else gamma

    def value(items: list[int], c: int) -> Any:
        y, p = problem.voxels(problem.y, items, c), problem.voxels(problem.p, items, c)
        index = tversky_index(y, p, problem.weights(items), alpha, beta, smooth_nr, smooth_dr, soft_label)
        return power(clamp_min(1 - index, FLOOR), exponent)

    return reduce_regions(problem, value)


@reference
def sensitivity_specificity(
    problem: Problem,
    *,
    r: float = 0.05,
    squared: bool = True,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
) -> Any:
    """``smooth_nr`` has a place in the form ``squared=False`` alone."""

    def value(items: list[int], c: int) -> Any:
        y, p = problem.voxels(problem.y, items, c), problem.voxels(problem.p, items, c)
        w = problem.weights(items)
        yes, no = (w * y).sum() + smooth_dr, (w * (1 - y)).sum() + smooth_dr
        if squared:
            error = w * (y - p) ** 2
            return r * (error * y).sum() / yes + (1 - r) * (error * (1 - y)).sum() / no
        sensitivity = ((w * y * p).sum() + smooth_nr) / yes
        specificity = ((w * (1 - y) * (1 - p)).sum() + smooth_nr) / no
        return 1 - (r * sensitivity + (1 - r) * specificity)

    return reduce_regions(problem, value)
