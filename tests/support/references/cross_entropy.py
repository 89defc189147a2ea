"""Voxelwise losses: cross entropies under a weight."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from .common import Problem, one_number_per_class, reduce_voxels, reference
from .complexstep import Array, power

Factor = Callable[[int, int], Any]


def smoothed(problem: Problem, share: float, b: int, c: int) -> Array:
    """The target of an item and class of which a share is spread over the labels."""
    if not problem.labelled[b, c]:
        return problem.y[b, c]
    labels = sum(problem.labelled[b]) if problem.categorical else 2
    return (1 - share) * problem.y[b, c] + share / labels


def weighted_entropy(problem: Problem, yes: Factor, no: Factor, label_smoothing: float = 0.0) -> Array:
    """Per voxel, with factors by item b and class c and the class's weight w.

    Categorical ``-sum_c w yes(b, c) y ln p`` [B, 1, *spatial], Bernoulli
    ``-w [yes(b, c) y ln p + no(b, c) (1 - y) ln(1 - p)]`` [B, C', *spatial]. Masked voxels hold no meaning.
    """
    items = []
    for b in problem.items:
        terms = []
        for c in problem.classes:
            y = smoothed(problem, label_smoothing, b, c)
            term = yes(b, c) * y * problem.log_p[b, c]
            if problem.log_not_p is not None:
                term = term + no(b, c) * (1 - y) * problem.log_not_p[b, c]
            terms.append(-problem.weight[c] * problem.voxel_weight[b] * term)
        items.append(sum(terms)[None] if problem.categorical else np.stack(terms))
    return np.stack(items)


def cross_entropy(problem: Problem, label_smoothing: float = 0.0) -> Array:
    return weighted_entropy(problem, lambda b, c: 1.0, lambda b, c: 1.0, label_smoothing)


@reference
def binary_cross_entropy(problem: Problem, *, label_smoothing: float = 0.0) -> Any:
    return reduce_voxels(problem, cross_entropy(problem, label_smoothing))


@reference
def weighted_cross_entropy(
    problem: Problem, *, pos_weight: float | Sequence[float] = 2.0, label_smoothing: float = 0.0
) -> Any:
    positive = one_number_per_class(pos_weight, problem.y.shape[1], problem.classes)

    def yes(b: int, c: int) -> float:
        if problem.categorical and problem.weight_given:
            return 1.0
        return 1.0 if problem.categorical and c == 0 else positive[c]

    return reduce_voxels(problem, weighted_entropy(problem, yes, lambda b, c: 1.0, label_smoothing))


@reference
def balanced_cross_entropy(problem: Problem, *, label_smoothing: float = 0.0) -> Any:
    def prevalence(b: int, c: int) -> float:
        items = problem.labelling(problem.items if problem.batch else [b], c)
        return problem.mean_of(problem.y, items, c)

    values = weighted_entropy(problem, lambda b, c: 1 - prevalence(b, c), prevalence, label_smoothing)
    return reduce_voxels(problem, values)


@reference
def focal(
    problem: Problem,
    *,
    gamma: float = 2.0,
    alpha: float | Sequence[float] | Literal["default"] | None = "default",
) -> Any:
    """``alpha="default"``: 0.25 in Bernoulli mode, None in categorical mode."""
    if alpha == "default":
        alpha = None if problem.categorical else 0.25

    def balance(c: int) -> tuple[float, float]:
        if alpha is None:
            return 1.0, 1.0
        a = one_number_per_class(alpha, problem.y.shape[1], problem.classes)[c]
        if problem.categorical and np.isscalar(alpha) and c == 0:
            a = 1 - a
        return a, 1 - a

    def yes(b: int, c: int) -> Array:
        return balance(c)[0] * power(problem.not_p[b, c], gamma)

    def no(b: int, c: int) -> Array:
        return balance(c)[1] * power(problem.p[b, c], gamma)

    return reduce_voxels(problem, weighted_entropy(problem, yes, no))


@reference
def topk_cross_entropy(problem: Problem, *, k: float = 10.0, label_smoothing: float = 0.0) -> Any:
    entropy = cross_entropy(problem, label_smoothing)
    chosen = np.zeros(entropy.shape, dtype=bool)
    for items in problem.regions:
        for channel in range(entropy.shape[1]):
            ranked = [
                (-entropy[(b, channel, *voxel)].real, (b, channel, *voxel))
                for b in (items if problem.categorical else problem.labelling(items, problem.classes[channel]))
                for voxel in map(tuple, np.argwhere(problem.counted[b]))
            ]
            number = min(max(1, math.floor(len(ranked) * Fraction(str(k)) / 100)), len(ranked))
            for _, place in sorted(ranked)[:number]:
                chosen[place] = True
    values = np.where(chosen, entropy, 0.0)
    if problem.reduction == "mean":
        return values.sum() / max(chosen.sum(), 1)
    return reduce_voxels(problem, values)
