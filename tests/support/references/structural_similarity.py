"""Cross entropy over the voxels whose neighbourhood looks different in prediction and target."""

from typing import Any

import numpy as np

from .common import Problem, box_offsets, reduce_voxels, reference, shifted
from .complexstep import Array, absolute, sqrt
from .cross_entropy import cross_entropy


def window_offsets(axes: int, window: int, sigma: float) -> list[tuple[tuple[int, ...], float]]:
    """Offset and weight of each voxel of the Gaussian window; the weights sum to 1."""
    offsets = list(box_offsets([window // 2] * axes))
    heights = [float(np.prod([np.exp(-(o**2) / (2 * sigma**2)) for o in offset])) for offset in offsets]
    return [(offset, height / sum(heights)) for offset, height in zip(offsets, heights, strict=True)]


def standardised(x: Array, constant: float, window: int, sigma: float) -> Array:
    """``(x - m + C) / (s + C)`` with mean m and standard deviation s of each voxel's own window."""
    offsets = window_offsets(x.ndim, window, sigma)
    mean, variance = np.zeros_like(x), np.zeros_like(x)
    for offset, weight in offsets:
        mean = mean + weight * shifted(x, offset, "edge")
    for offset, weight in offsets:
        variance = variance + weight * (shifted(x, offset, "edge") - mean) ** 2
    return (x - mean + constant) / (sqrt(variance) + constant)


@reference
def structural_similarity(
    problem: Problem,
    *,
    constant: float = 0.01,
    threshold: float = 0.1,
    window: int = 3,
    sigma: float = 1.5,
    detach_weights: bool = True,
) -> Any:
    def difference(p: Array, b: int) -> Array:
        """e of an item: [C', *spatial], or in categorical mode its mean over the classes [1, *spatial]."""
        maps = []
        for c in problem.classes:
            if not problem.labelled[b, c]:
                if not problem.categorical:
                    maps.append(np.zeros(problem.counted[b].shape))
                continue
            of_y = standardised(problem.y[b, c], constant, window, sigma)
            of_p = standardised(p[b, c], constant, window, sigma)
            maps.append(absolute(of_y - of_p))
        e = np.stack(maps) if maps else np.zeros((1, *problem.counted[b].shape))
        return e.mean(axis=0, keepdims=True) if problem.categorical else e

    entropy = cross_entropy(problem)
    selected = np.zeros(entropy.shape, dtype=bool)
    values = np.zeros_like(entropy)
    for b in problem.items:
        if not problem.counted[b].any():
            continue
        fixed = difference(problem.fixed_p, b)
        largest = fixed[:, problem.counted[b]].max()
        selected[b] = (fixed > threshold * largest) & problem.counted[b]
        e = fixed if detach_weights else difference(problem.p, b)
        values[b] = np.where(selected[b], e * entropy[b], 0.0)
    if problem.reduction == "mean":
        return values.sum() / max(selected.sum(), 1)
    return reduce_voxels(problem, values)
