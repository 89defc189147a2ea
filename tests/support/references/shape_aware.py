"""Cross entropy that weighs wrong voxels by how far the predicted contour is from the reference contour."""

from functools import lru_cache
from typing import Any

import numpy as np

from .common import Problem, Spacing, reduce_voxels, reference
from .complexstep import Array
from .cross_entropy import cross_entropy
from .distances import contour, nearest_distance


@lru_cache(maxsize=256)
def _contour_distance(content: bytes, shape: tuple[int, ...], spacing: Spacing) -> float:
    predicted, true, counted = np.frombuffer(content, dtype=bool).reshape(shape)
    from_voxels = np.argwhere(contour(predicted) & counted)
    to_voxels = np.argwhere(contour(true))
    if len(from_voxels) == 0 or len(to_voxels) == 0:
        return 0.0
    return float(nearest_distance(from_voxels, to_voxels, spacing).mean())


def contour_distance(predicted: Array, true: Array, counted: Array, spacing: Spacing) -> float:
    """E: mean distance in mm from the predicted contour's counted voxels to the reference contour."""
    content = np.stack([predicted.astype(bool), true.astype(bool), counted])
    return _contour_distance(content.tobytes(), content.shape, tuple(float(s) for s in spacing))


@reference
def shape_aware(problem: Problem) -> Any:
    problem.require_hard_target()

    def distance(b: int, c: int) -> float:
        return contour_distance(problem.hard[b, c], problem.y[b, c] == 1, problem.counted[b], problem.spacing[b])

    entropy = cross_entropy(problem)
    values = np.zeros_like(entropy)
    for b in problem.items:
        if problem.categorical:
            distances = [distance(b, c) for c in range(1, problem.y.shape[1]) if problem.labelled[b, c]]
            e = np.mean(distances) if distances else 0.0
            wrong = problem.hard[b].argmax(axis=0) != problem.y[b].argmax(axis=0)
            values[b] = entropy[b] * (1 + e * wrong)
        else:
            for i, c in enumerate(problem.classes):
                wrong = problem.hard[b, c] != (problem.y[b, c] == 1)
                values[b, i] = entropy[b, i] * (1 + distance(b, c) * wrong)
    return reduce_voxels(problem, values)
