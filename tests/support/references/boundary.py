"""Probabilities times the signed distance to the reference's border."""

from typing import Any

import numpy as np

from .common import Problem, reduce_items, reference
from .distances import signed_distance_map


@reference
def boundary(problem: Problem, *, normalize: bool = False, subtract_minimum: bool = False) -> Any:
    problem.require_hard_target()

    def value(b: int, c: int) -> Any:
        y, p = problem.y[b, c], problem.p[b, c]
        if problem.distance_map is not None:
            phi = problem.distance_map[b, c]
        else:
            phi = signed_distance_map(y == 1, problem.spacing[b])
        if normalize and np.abs(phi).max() > 0:
            phi = phi / np.abs(phi).max()
        total: Any = 0.0
        for voxel in map(tuple, np.argwhere(problem.counted[b])):
            error = p[voxel] - (y[voxel] if subtract_minimum else 0.0)
            total = total + problem.voxel_weight[b][voxel] * error * phi[voxel]
        return total / problem.counted[b].sum()

    return reduce_items(problem, value)
