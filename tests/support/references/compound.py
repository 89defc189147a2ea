"""Losses that add a Dice part and a cross entropy part."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .common import Problem, one_number_per_class, reduce_regions, reference
from .complexstep import Array, clamp_min, log, power
from .region import FLOOR, overlap, tversky_index


def mean_over(items: list[int], value: Callable[[int], Any]) -> Any:
    """The cross entropy part does not know of ``batch``: it stays the mean of the items' means."""
    return sum(value(item) for item in items) / len(items)


def entropy_items(problem: Problem, labelling: list[int]) -> list[int]:
    """The items of a region's cross entropy part: with a softmax also those that do not label the class."""
    return list(problem.items) if problem.categorical and problem.batch else labelling


@reference
def combo(
    problem: Problem,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    smooth_nr: float = 1.0,
    smooth_dr: float = 1.0,
) -> Any:
    def class_weight(c: int) -> float:
        if problem.weight_given:
            return problem.weight[c]
        return 1 - beta if c == 0 else beta

    def entropy(items: list[int], c: int) -> Any:
        """mBCE of a region: of a channel (Bernoulli) or of all classes together (categorical)."""
        w = problem.weights(items)
        if problem.log_not_p is None:
            return sum(
                class_weight(k)
                * np.mean(-w * problem.voxels(problem.y, items, k) * problem.voxels(problem.log_p, items, k))
                for k in problem.classes
            )
        y = problem.voxels(problem.y, items, c)
        yes = beta * y * problem.voxels(problem.log_p, items, c)
        no = (1 - beta) * (1 - y) * problem.voxels(problem.log_not_p, items, c)
        return problem.weight[c] * -np.mean(w * (yes + no))

    def value(items: list[int], c: int) -> Any:
        y, p = problem.voxels(problem.y, items, c), problem.voxels(problem.p, items, c)
        dice_part = problem.weight[c] * (1 - overlap(y, p, smooth_nr, smooth_dr, w=problem.weights(items)))
        return alpha * mean_over(entropy_items(problem, items), lambda b: entropy([b], c)) + (1 - alpha) * dice_part

    return reduce_regions(problem, value, weighted=True)


@reference
def exponential_logarithmic(
    problem: Problem,
    *,
    dice_weight: float = 0.8,
    cross_entropy_weight: float = 0.2,
    gamma: float = 0.3,
    frequencies: Sequence[float] | None = None,
    smooth_nr: float = 1.0,
    smooth_dr: float = 1.0,
) -> Any:
    """``frequencies``: of every class (class 0 too); in Bernoulli mode the share of yes in every channel."""
    num_classes = problem.y.shape[1]
    if frequencies is None:
        everyone = list(problem.items)
        share = {c: problem.mean_of(problem.y, problem.labelling(everyone, c), c) for c in range(num_classes)}
    elif len(frequencies) == num_classes:
        share = dict(enumerate(frequencies))
    else:
        share = one_number_per_class(frequencies, num_classes, problem.classes)

    def label_weight(frequency: float, total: float) -> float:
        return (total / frequency) ** 0.5 if frequency > 0 else 0.0

    def surprise(log_p: Array) -> Array:
        return power(clamp_min(-log_p, FLOOR), gamma)

    def entropy(items: list[int], c: int) -> Any:
        """The second part of a region: of a channel (Bernoulli) or of all classes together (categorical)."""
        w = problem.weights(items)
        if problem.log_not_p is None:
            total = sum(share.values())
            return sum(
                problem.weight[k]
                * label_weight(share[k], total)
                * np.mean(w * problem.voxels(problem.y, items, k) * surprise(problem.voxels(problem.log_p, items, k)))
                for k in problem.classes
            )
        y = problem.voxels(problem.y, items, c)
        yes = label_weight(share[c], 1.0) * y * surprise(problem.voxels(problem.log_p, items, c))
        no = label_weight(1 - share[c], 1.0) * (1 - y) * surprise(problem.voxels(problem.log_not_p, items, c))
        return problem.weight[c] * np.mean(w * (yes + no))

    def value(items: list[int], c: int) -> Any:
        y, p = problem.voxels(problem.y, items, c), problem.voxels(problem.p, items, c)
        dice_part = problem.weight[c] * surprise(log(overlap(y, p, smooth_nr, smooth_dr, w=problem.weights(items))))
        entropy_part = mean_over(entropy_items(problem, items), lambda item: entropy([item], c))
        return dice_weight * dice_part + cross_entropy_weight * entropy_part

    return reduce_regions(problem, value, weighted=True)


@reference
def unified_focal(
    problem: Problem,
    *,
    alpha: float = 0.5,
    delta: float = 0.6,
    gamma: float = 0.5,
    asymmetric: bool = True,
    smooth_nr: float = 1.0,
    smooth_dr: float = 1.0,
) -> Any:
    """Every class is background or rare; independent channels are two classes each, no and yes."""

    def overlap_part(y: Array, p: Array, w: Array, rare: bool) -> Any:
        error = 1 - tversky_index(y, p, w, 1 - delta, delta, smooth_nr, smooth_dr, False)
        if gamma == 0 or not (rare or not asymmetric):
            return error
        return power(clamp_min(error, FLOOR), 1 - gamma)

    def entropy_part(y: Array, not_p: Array, log_p: Array, w: Array, rare: bool) -> Any:
        focus = 1.0 if rare and asymmetric else power(not_p, gamma)
        return np.mean(-w * (delta if rare else 1 - delta) * focus * y * log_p)

    def of_class(b: int, c: int) -> tuple[Any, Any, Any, Any]:
        voxels = [problem.voxels(array, [b], c) for array in (problem.y, problem.p, problem.not_p, problem.log_p)]
        return voxels[0], voxels[1], voxels[2], voxels[3]

    def entropy(b: int, c: int) -> Any:
        w = problem.weights([b])
        if problem.log_not_p is None:
            total = 0.0
            for k in problem.classes:
                y, _, not_p, log_p = of_class(b, k)
                total = total + problem.weight[k] * entropy_part(y, not_p, log_p, w, k > 0)
            return total
        y, p, not_p, log_p = of_class(b, c)
        log_not_p = problem.voxels(problem.log_not_p, [b], c)
        yes, no = entropy_part(y, not_p, log_p, w, True), entropy_part(1 - y, p, log_not_p, w, False)
        return problem.weight[c] * (yes + no)

    def regions(items: list[int], c: int) -> Any:
        y, p = problem.voxels(problem.y, items, c), problem.voxels(problem.p, items, c)
        w = problem.weights(items)
        if problem.log_not_p is None:
            return problem.weight[c] * overlap_part(y, p, w, c > 0)
        return problem.weight[c] * (overlap_part(y, p, w, True) + overlap_part(1 - y, 1 - p, w, False)) / 2

    def value(items: list[int], c: int) -> Any:
        entropy_part = mean_over(entropy_items(problem, items), lambda b: entropy(b, c))
        return alpha * entropy_part + (1 - alpha) * regions(items, c)

    return reduce_regions(problem, value, weighted=True)
