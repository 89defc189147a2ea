r"""What so many cases can show at all, with one training per loss.

**The least difference.** Step-down max-T over k comparisons with one reference (`inference`) rejects about where
Student's t does at the level $\alpha_k$ at which any of k equally correlated (one half) normal tests rejects with
$\alpha$; from that quantile q a noncentral t's equation gives the difference found with 80 % power, without simulation,
hence the same number every time. At few cases sign flips, and the correction for skewness, cost more than that: by
simulation the difference has to be larger by a factor of about $1 + (q / \sqrt n)^{2.2} / 6$. The test holds the result
against simulated comparisons. It is for normal differences.

**Too few cases.** The least two-sided p-value of n sign flips is $2 / 2^n$: with 6 cases differences can be
significant, with 5 none, however large, and however many comparisons there are.
"""

from functools import lru_cache
from math import sqrt

import numpy as np
from scipy.optimize import brentq
from scipy.special import nctdtr, ndtr, stdtrit

from pipelines.comparison.statistics.inference import ALPHA, least_patients


@lru_cache(maxsize=256)
def _level(comparisons: int, level: float) -> float:
    """The level of one of k equally correlated (0.5) two-sided normal tests, such that any rejects with `level`."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    shared, weights = nodes * sqrt(0.5), weights / weights.sum()

    def excess(z: float) -> float:
        within = ndtr((z - shared) / sqrt(0.5)) - ndtr((-z - shared) / sqrt(0.5))
        return float((weights * within**comparisons).sum()) - (1 - level)

    return 2 * float(ndtr(-brentq(excess, 0.1, 12.0)))


def power(difference: float, sd: float, cases: int, *, comparisons: int = 1, level: float = ALPHA) -> float:
    """The chance that a mean difference is found, in its direction.

    Args:
        difference: the true mean difference.
        sd: standard deviation of the paired differences over cases, in the same unit; above 0.
        cases: n.
        comparisons: with one reference, as one of which it is found.
        level: of all of them together.
    """
    if cases < least_patients(level):
        return 0.0
    quantile = -float(stdtrit(cases - 1, _level(comparisons, level) / 2))
    shift = abs(difference) / sd * sqrt(cases) / (1 + (quantile / sqrt(cases)) ** 2.2 / 6)
    return 1 - float(nctdtr(cases - 1, shift, quantile))


def least_difference(
    sd: float, cases: int, *, comparisons: int = 1, wanted: float = 0.8, level: float = ALPHA
) -> float | None:
    """The smallest mean difference that is found with the wanted power; none where the cases are too few for any.

    Args:
        sd: standard deviation of the paired differences over cases.
        cases: n.
        comparisons: with one reference, as one of which it is found.
        wanted: the power.
        level: of all comparisons together.
    """
    if cases < least_patients(level):
        return None
    if sd == 0:
        return 0.0

    def lack(difference: float) -> float:
        return power(difference, 1.0, cases, comparisons=comparisons, level=level) - wanted

    high = 1.0
    while lack(high) < 0:
        high *= 2
    return sd * float(brentq(lack, 0.0, high, xtol=1e-6))


def cases_needed(difference: float, sd: float, *, comparisons: int = 1, wanted: float = 0.8) -> int:
    """How many cases find a mean difference with the wanted power.

    Args:
        difference: the true mean difference, not 0.
        sd: standard deviation of the paired differences over cases; above 0.
        comparisons: with one reference, as one of which it is found.
        wanted: the power.
    """
    low, high = 1, 2
    while power(difference, sd, high, comparisons=comparisons) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if power(difference, sd, middle, comparisons=comparisons) < wanted:
            low = middle
        else:
            high = middle
    return high
