r"""What so many cases can show at all.

**The least difference.** Wilcoxon's test on n normal differences has about the power of a t-test on $n \cdot 3/\pi$
(its asymptotic relative efficiency, 0.955), at the level that its discrete p-values can attain. So the difference
found with 80 % power solves a noncentral t's equation, without simulation, hence the same number every time; the test
holds it against simulated Wilcoxon tests. Differences with heavy tails, as Dice's, are found somewhat more often than
that for the same standard deviation: the number is on the safe side.

**Too few cases.** The smallest two-sided p-value of n pairs is $2 / 2^n$. Holm's first step asks for $0.05 / k$;
where that is below it, no difference, however large, is found. 105 pairs need 13 cases, 14 comparisons with one
reference 10.
"""

from math import ceil, log2, pi, sqrt

from scipy.optimize import brentq
from scipy.special import nctdtr, stdtrit

from pipelines.comparison.statistics.wilcoxon import attainable_level

_EFFICIENCY = 3 / pi


def least_cases(comparisons: int, level: float = 0.05) -> int:
    """The smallest number of cases at which one of so many comparisons can be significant after Holm.

    Args:
        comparisons: k, at least 1.
        level: of all of them together.
    """
    return max(1, ceil(1 + log2(comparisons / level) - 1e-9))


def power(difference: float, sd: float, cases: int, *, comparisons: int = 1, level: float = 0.05) -> float:
    """The chance that Wilcoxon's test, two-sided, finds a mean difference, in its direction.

    Args:
        difference: the true mean difference.
        sd: standard deviation of the paired differences over cases, in the same unit; above 0.
        cases: n.
        comparisons: for how many the level is divided: Holm's first, strictest step.
        level: of all of them together.
    """
    attained = attainable_level(cases, level / comparisons)
    if attained == 0 or cases < 2:
        return 0.0
    freedom = max(cases * _EFFICIENCY - 1, 1.0)
    quantile = -float(stdtrit(freedom, attained / 2))
    shift = abs(difference) / sd * sqrt(cases * _EFFICIENCY)
    return 1 - float(nctdtr(freedom, shift, quantile))


def least_difference(
    sd: float, cases: int, *, comparisons: int = 1, wanted: float = 0.8, level: float = 0.05
) -> float | None:
    """The smallest mean difference that is found with the wanted power; none where the cases are too few for any.

    Args:
        sd: standard deviation of the paired differences over cases.
        cases: n.
        comparisons: for how many the level is divided: Holm's first, strictest step.
        wanted: the power.
        level: of all comparisons together.
    """
    if cases < least_cases(comparisons, level):
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
        comparisons: for how many the level is divided.
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
