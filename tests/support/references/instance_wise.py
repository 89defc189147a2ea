"""A loss per instance: components grown from a voxel, and the nearest of them over all pairs of voxels."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .common import Problem, foreground_reference, reduce_items
from .complexstep import Array, log
from .cross_entropy import binary_cross_entropy
from .distances import Spacing, nearest_distance
from .region import dice
from .skeletons import components

INNER = {"dice": dice, "binary_cross_entropy": binary_cross_entropy}


def one_against_rest(z: Array, c: int) -> Array:
    rest = np.delete(z, c, axis=0)
    most = rest.real.max(axis=0)
    return z[c] - most - log(np.exp(rest - most).sum(axis=0))


def areas(
    y: Array, counted: Array, spacing: Spacing, cells: str, faces_only: bool, numbers: Array | None
) -> list[Array]:
    """Where several components are nearest, ``numbers`` decides."""
    if numbers is None:
        found = components(y, faces_only)
    else:
        found = [y & (numbers == number) for number in np.unique(numbers[y])]
    if cells == "blob":
        areas = [(one | ~y) & counted for one in found]
    elif numbers is not None:
        areas = [(numbers == numbers[one][0]) & counted for one in found]
    else:
        voxels = np.argwhere(np.ones(y.shape))
        apart = np.array([nearest_distance(voxels, np.argwhere(one), spacing) for one in found])
        nearest = apart.argmin(axis=0).reshape(y.shape) if found else None
        areas = [(nearest == i) & counted for i in range(len(found))]
    left = [area for one, area in zip(found, areas, strict=True) if (one & counted).any()]
    return left or [counted]


@foreground_reference
def instance_wise(
    problem: Problem,
    *,
    loss: str = "dice+binary_cross_entropy",
    cells: str = "voronoi",
    connectivity: int = 26,
    terms: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    problem.require_hard_target()
    mode = "probabilities" if problem.mode == "probabilities" else "sigmoid"

    def value(b: int, c: int) -> Any:
        y = problem.y[b, c] == 1
        z = one_against_rest(problem.z[b], c) if problem.categorical else problem.z[b, c]
        values = []
        numbers = None if problem.instance_map is None else problem.instance_map[b, c]
        for area in areas(y, problem.counted[b], problem.spacing[b], cells, connectivity in (4, 6), numbers):
            arguments = {"mode": mode, "mask": area[None, None], "voxel_weight": problem.voxel_weight[b][None, None]}
            for name in loss.split("+"):
                inner = INNER[name](z[None, None], y[None, None], **arguments, **(terms or {}).get(name, {}))
                values.append(inner)
        return sum(values) / (len(values) / len(loss.split("+")))

    return reduce_items(problem, value)
