r"""Wilcoxon's signed-rank test, Friedman's test of all losses, and Holm's adjustment over several tests.

Wilcoxon's signed-rank test, exact also with ties and zeros.

With $d_i$ the differences of n pairs, $r_i$ the (mid)ranks of $|d_i|$ among all of them, zeros included,

$$W^+ = \sum_{d_i > 0} r_i, \qquad W^- = \sum_{d_i < 0} r_i.$$

Where there is no difference, each sign is a coin's: so the distribution of $W^+$ given the $|d_i|$ is that of a sum
of ranks with coins, which is computed exactly up to n = 50, as scipy does without ties. Ties need no correction then,
and zeros, whose sign does not matter, only lift the other ranks (Pratt 1959): dropping them before ranking instead
can turn a smaller difference into a smaller p-value, and half of a zero's rank to each side (`zsplit`) gives this
same test. Beyond 50, the normal approximation with the exact variance $\frac14 \sum_{d_i \ne 0} r_i^2$.

What is tested is symmetry around zero: where differences are skewed, that is not the same as a mean of zero. So it
decides no word, and answers another question: on which side most patients are.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from math import factorial, prod

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, fdtrc, ndtr
from scipy.stats import rankdata

from pipelines.statistics.scores import DIGITS, Floats


@dataclass(frozen=True)
class Friedman:
    """The test of no difference between any.

    Attributes:
        chi2: Friedman's statistic.
        chi2_p: its p-value.
        f: Iman and Davenport's statistic; none where all patients rank alike: it is infinite.
        freedom: F's degrees of freedom.
        p: F's p-value; where it is infinite the chance that all rank alike.
    """

    chi2: float
    chi2_p: float
    f: float | None
    freedom: tuple[int, int]
    p: float


def case_ranks(gains: Floats) -> Floats:
    """Ranks a patient, 1 the best, ties midranks.

    Args:
        gains: `[L, n]`, more is better.
    """
    return np.asarray(rankdata(-gains, axis=0))


def friedman(ranks: Floats, *, correct_ties: bool = True) -> Friedman:
    """Friedman's test.

    Args:
        ranks: `[L, n]`, a patient's 1 to L; n at least 2.
        correct_ties: as the module says; otherwise Demsar's form.
    """
    k, n = ranks.shape
    middle = n * k * (k + 1) ** 2 / 4
    spread = float((ranks**2).sum()) - middle if correct_ties else n * k * (k + 1) * (k - 1) / 12
    means = ranks.mean(1)
    chi2 = (k - 1) * n * (float((n * means**2).sum()) - middle) / spread if spread > 1e-9 else 0.0
    chi2 = max(chi2, 0.0)
    freedom = (k - 1, (k - 1) * (n - 1))
    rest = n * (k - 1) - chi2
    f = (n - 1) * chi2 / rest if rest > 1e-9 else None
    p = float(fdtrc(*freedom, f)) if f is not None else _chance_of_unison(ranks)
    return Friedman(chi2, float(chdtrc(k - 1, chi2)), f, freedom, p)


def _chance_of_unison(ranks: Floats) -> float:
    """The chance that all patients rank as the first does: one of the orders that its ranks, with their ties, have."""
    k, n = ranks.shape
    orders = factorial(k) / prod(factorial(ties) for ties in Counter(ranks[:, 0].tolist()).values())
    return float(orders) ** -(n - 1)


Indices = NDArray[np.intp]


def holm(p: Floats) -> Floats:
    r"""Holm's adjusted p-values over the last axis.

    $$\tilde p_{(i)} = \max_{j \le i} \min\{1, (m - j + 1)\, p_{(j)}\}$$

    with $p_{(1)} \le \dots \le p_{(m)}$. Rejecting where $\tilde p \le \alpha$, the chance of any false rejection is
    at most $\alpha$, however the tests depend on each other.

    Args:
        p: `[..., m]`.
    """
    order = np.argsort(p, axis=-1, kind="stable")
    steps = np.take_along_axis(p, order, -1) * np.arange(p.shape[-1], 0, -1)
    return _unsorted(np.maximum.accumulate(np.minimum(steps, 1.0), axis=-1), order)


def _unsorted(ordered: Floats, order: Indices) -> Floats:
    back = np.empty_like(ordered)
    np.put_along_axis(back, order, ordered, -1)
    return back


#: Up to so many pairs the distribution is computed.
EXACT_UP_TO = 50


@dataclass(frozen=True)
class SignedRank:
    """The test's outcome.

    Attributes:
        positive: W+.
        negative: W-.
        p: two-sided.
        exact: whether the distribution was computed, or approximated.
        effect: the matched-pairs rank-biserial correlation, (W+ - W-) / (sum of all ranks), -1 to 1: the evidence for
            minus that against. Zeros count for neither, but in the sum: one difference among equal pairs is not 1.
    """

    positive: float
    negative: float
    p: float
    exact: bool
    effect: float


def signed_rank(differences: Floats) -> SignedRank:
    """Test paired differences.

    Args:
        differences: `[n]`; those that agree to ten decimals are ties.
    """
    d = np.round(differences, DIGITS)
    n = len(d)
    ranks = rankdata(np.abs(d))
    positive, negative = float(ranks[d > 0].sum()), float(ranks[d < 0].sum())
    signed = ranks[d != 0]
    exact = n <= EXACT_UP_TO
    if exact:
        below = _cumulative(tuple(np.sort(np.rint(2 * signed)).astype(int).tolist()))
        p = min(1.0, 2 * float(below[round(2 * min(positive, negative))]))
    else:
        spread = float(np.sqrt((signed**2).sum()))
        p = min(1.0, 2 * float(ndtr(-abs(positive - negative) / spread))) if spread else 1.0
    return SignedRank(positive, negative, p, exact, (positive - negative) / (n * (n + 1) / 2))


@lru_cache(maxsize=512)
def _cumulative(doubled: tuple[int, ...]) -> Floats:
    """P(W <= w), w = 0, 1, ..., of a sum of these ranks, each taken by a coin; doubled, so that midranks are whole."""
    chance = np.zeros(sum(doubled) + 1)
    chance[0] = 1.0
    for rank in doubled:
        moved = np.zeros_like(chance)
        moved[rank:] = chance[: len(chance) - rank]
        chance = (chance + moved) / 2
    return np.cumsum(chance)
