"""Calibration: probabilities against frequencies, bin by bin."""

from typing import Any

import numpy as np

from .common import Problem, reduce_items, reference
from .complexstep import absolute


def share_of_bin(p: Any, m: int, bins: int) -> Any:
    """What belongs to bin m of a voxel with the probability p: a line to each of the neighbours' centres."""
    centre, p_real = (m - 0.5) / bins, p.real
    if (m == 1 and p_real <= centre) or (m == bins and p_real >= centre):
        return 1.0
    if abs(p_real - centre) >= 1 / bins:
        return 0.0
    return 1 - (p - centre) * bins if p_real >= centre else 1 + (p - centre) * bins


@reference
def l1_ace(problem: Problem, *, num_bins: int = 20, binning: str = "hard", ignore_empty_classes: bool = False) -> Any:
    def value(b: int, c: int) -> Any:
        y, p = problem.voxels(problem.y, [b], c), problem.voxels(problem.p, [b], c)
        w = problem.weights([b])
        if ignore_empty_classes and not (w * y).any():
            return 0.0
        errors = []
        for m in range(1, num_bins + 1):
            if binning == "hard":
                inside = (p.real > (m - 1) / num_bins) & (p.real <= m / num_bins) | (p.real == 0) & (m == 1)
                if (mass := w[inside].sum()) > 0:
                    errors.append(absolute((w * (p - y))[inside].sum() / mass))
                continue
            shares = w * np.array([share_of_bin(voxel, m, num_bins) for voxel in p])
            if shares.sum().real >= 0.01:
                errors.append(absolute((shares * p).sum() / shares.sum() - (shares * y).sum() / shares.sum()))
        return sum(errors) / max(len(errors), 1)

    return reduce_items(problem, value)
