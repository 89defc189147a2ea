"""Cross entropy that weighs more near the border of a structure."""

from typing import Any

import numpy as np

from .common import Problem, reduce_voxels, reference
from .complexstep import Array
from .cross_entropy import cross_entropy
from .distances import signed_distance_map


def penalty(signed: Array) -> Array:
    """F of a structure from its signed map: ``(max d - d) / max d`` on either side of the border."""
    result = np.zeros(signed.shape)
    for side in (signed > 0, signed < 0):
        if side.any():
            d = np.abs(signed[side])
            result[side] = (d.max() - d) / d.max()
    return result


@reference
def distance_penalty(problem: Problem) -> Any:
    problem.require_hard_target()

    def structure(b: int, c: int) -> Array:
        if problem.distance_map is not None:
            return penalty(problem.distance_map[b, c])
        return penalty(signed_distance_map(problem.y[b, c] == 1, problem.spacing[b]))

    entropy = cross_entropy(problem)
    values = []
    for b in problem.items:
        if problem.categorical:
            maps = [structure(b, c) for c in range(1, problem.y.shape[1]) if problem.labelled[b, c]]
            maps.append(np.zeros(problem.counted[b].shape))
            values.append((1 + np.max(maps, axis=0)) * entropy[b])
        else:
            maps = [structure(b, c) for c in problem.classes]
            values.append((1 + np.stack(maps)) * entropy[b])
    return reduce_voxels(problem, np.stack(values))
