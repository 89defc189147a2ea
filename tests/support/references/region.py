"""Losses of a few sums over the counted voxels of an item (or of the batch) and a class."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .common import Problem, foreground_reference, reduce_joined, reduce_regions, reference
from .complexstep import Array, absolute, clamp_min, log_cosh, power, relu, sqrt
from .skeletons import tubes

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


@reference
def generalized_dice(
    problem: Problem,
    *,
    w_type: str = "square",
    smooth_nr: float = 1.0,
    smooth_dr: float = 1.0,
    soft_label: bool = False,
) -> Any:
    exponent = {"square": 2, "simple": 1, "uniform": 0}[w_type]

    def value(items: list[int]) -> Any:
        volumes = {}
        for c in problem.classes:
            if labelling := problem.labelling(items, c):
                volumes[c] = (problem.weights(labelling) * problem.voxels(problem.y, labelling, c)).sum()
        present = [n for n in volumes.values() if n > 0]
        shared, both = smooth_nr, smooth_dr
        for c, n in volumes.items():
            rarity = problem.weight[c] * ((min(present) / n) ** exponent if n > 0 else 1.0)
            labelling = problem.labelling(items, c)
            y, p = problem.voxels(problem.y, labelling, c), problem.voxels(problem.p, labelling, c)
            w = problem.weights(labelling)
            shared = shared + rarity * 2 * hits(y, p, w, soft_label)
            both = both + rarity * ((w * y).sum() + (w * p).sum())
        return 1 - shared / both

    return reduce_joined(problem, problem.classes, value)


@reference
def generalized_wasserstein_dice(
    problem: Problem,
    *,
    dist_matrix: Sequence[Sequence[float]] | None = None,
    weighting_mode: str = "default",
    smooth_nr: float = 1.0,
    smooth_dr: float = 1.0,
) -> Any:
    problem.require_hard_target()
    if not problem.categorical:
        raise ValueError("classes that exclude each other")
    num_classes = problem.y.shape[1]
    m = 1 - np.eye(num_classes) if dist_matrix is None else np.array(dist_matrix) / np.max(dist_matrix)

    def value(items: list[int]) -> Any:
        p = np.stack([problem.voxels(problem.p, items, c) for c in range(num_classes)])
        labels = np.stack([problem.voxels(problem.y, items, c) for c in range(num_classes)]).argmax(axis=0)
        true_positive, errors, weights = 0.0, 0.0, problem.weights(items)
        for voxel, label in enumerate(labels):
            weight = weights[voxel]
            if weighting_mode == "GDL":
                weight = weight / (weights[labels == label].sum() + 1)
            d = sum(m[label, c] * p[c, voxel] for c in range(num_classes))
            errors = errors + weight * d
            if weighting_mode == "GDL" or label > 0:
                true_positive = true_positive + weight * (1 - d)
        return 1 - (2 * true_positive + smooth_nr) / (2 * true_positive + errors + smooth_dr)

    return reduce_joined(problem, list(range(num_classes)), value)


@reference
def matthews_correlation(problem: Problem, *, smooth_dr: float = 1e-5) -> Any:
    def value(items: list[int], c: int) -> Any:
        y, p = problem.voxels(problem.y, items, c), problem.voxels(problem.p, items, c)
        w = problem.weights(items)
        tp, fp = (w * y * p).sum(), (w * (1 - y) * p).sum()
        fn, tn = (w * y * (1 - p)).sum(), (w * (1 - y) * (1 - p)).sum()
        if (w * y).sum() == 0 or (w * (1 - y)).sum() == 0:
            return (fp + fn) / w.sum()
        return 1 - (tp * tn - fp * fn) / sqrt(np.asarray((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn) + smooth_dr))

    return reduce_regions(problem, value)


def jaccard_loss(y: Array, wrong: Array, w: Array) -> float:
    """One minus intersection over union, if the voxels ``wrong`` are errors and no others are; 0 of nothing."""
    predicted = np.where(wrong, 1 - y, y)
    union = (w * np.maximum(y, predicted)).sum()
    return 1 - (w * y * predicted).sum() / union if union else 0.0


@reference
def lovasz(problem: Problem, *, classes: str = "default", hinge: bool = False) -> Any:
    problem.require_hard_target()
    if classes == "default":
        classes = "present" if problem.categorical else "all"

    def value(items: list[int], c: int) -> Any:
        y = problem.voxels(problem.y, items, c)
        if hinge:
            error = relu(1 - problem.voxels(problem.z, items, c) * (2 * y - 1))
        else:
            error = absolute(y - problem.voxels(problem.p, items, c))
        wrong, total, before = np.zeros(y.shape, dtype=bool), 0.0, 0.0
        w = problem.weights(items)
        for voxel in np.argsort(-error.real, kind="stable"):
            wrong[voxel] = True
            after = jaccard_loss(y, wrong, w)
            total, before = total + error[voxel] * (after - before), after
        return total

    def present(items: list[int], c: int) -> bool:
        return bool(items) and bool((problem.weights(items) * problem.voxels(problem.y, items, c)).any())

    if classes == "all":
        return reduce_regions(problem, value)
    if problem.reduction != "mean":
        return reduce_regions(problem, lambda items, c: value(items, c) if present(items, c) else 0.0)
    means = []
    for items in problem.regions:
        labelling = {c: problem.labelling(items, c) for c in problem.classes}
        if not any(labelling.values()):
            continue
        left = [c for c in problem.classes if present(labelling[c], c)]
        means.append(np.mean([problem.weight[c] * value(labelling[c], c) for c in left]) if left else 0.0)
    return np.mean(means) if means else 0.0


@foreground_reference
def skeleton_recall(problem: Problem, *, smooth: float = 1e-5) -> Any:
    """Of the tubes in ``skeleton_map``, or of those that are computed."""
    problem.require_hard_target()
    num_classes = problem.y.shape[1]

    def tube(b: int, c: int) -> Array:
        given = problem.skeleton_map
        if given is None:
            return tubes(problem.y[b, c] == 1, problem.spacing[b])
        return np.asarray(given[b, c - (num_classes - given.shape[1])])

    def value(items: list[int], c: int) -> Any:
        t = problem.weights(items) * np.concatenate([tube(b, c)[problem.counted[b]] for b in items])
        return 1 - ((t * problem.voxels(problem.p, items, c)).sum() + smooth) / (t.sum() + smooth)

    return reduce_regions(problem, value)
