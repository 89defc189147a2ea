"""Wilcoxon's signed-rank test, exact also with ties and zeros; Friedman's test of all losses; Holm's adjustment.

`docs/statistics.md` describes what they decide: no verdict depends on the first two.
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

Indices = NDArray[np.intp]
#: Up to this number of pairs, the distribution of Wilcoxon's W is computed exactly.
EXACT_UP_TO = 50


@dataclass(frozen=True)
class Friedman:
    """Friedman's test of no difference between any of the losses.

    Attributes:
        chi2: Friedman's statistic.
        chi2_p: its p-value.
        f: Iman and Davenport's statistic; `None` if it is infinite, which it is if all patients rank alike.
        freedom: degrees of freedom of F.
        p: p-value of F; if F is infinite, the probability that all patients rank alike.
    """

    chi2: float
    chi2_p: float
    f: float | None
    freedom: tuple[int, int]
    p: float


def case_ranks(gains: Floats) -> Floats:
    """The ranks of the losses within each patient; 1 is the best, ties have midranks.

    Args:
        gains: `[L, n]`, more is better.
    """
    return np.asarray(rankdata(-gains, axis=0))


def friedman(ranks: Floats, *, correct_ties: bool = True) -> Friedman:
    r"""Friedman's test in Iman and Davenport's form.

    With $R_j$ the mean rank of loss j of k over N patients,

    $$\chi^2 = \frac{N (k - 1) \left(N \sum_j R_j^2 - C\right)}{\sum_{ij} r_{ij}^2 - C}, \quad
    C = \tfrac14 N k (k+1)^2, \qquad F = \frac{(N - 1) \chi^2}{N (k - 1) - \chi^2}$$

    with $k - 1$ and $(k - 1)(N - 1)$ degrees of freedom. The denominator corrects for ties; without ties it is
    $N k (k+1)(k-1) / 12$, which Demsar (2006) always uses.

    Args:
        ranks: `[L, n]`, 1 to L within each patient; n at least 2.
        correct_ties: whether to correct for ties; otherwise Demsar's form.
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
    p = float(fdtrc(*freedom, f)) if f is not None else _chance_of_equal_orders(ranks)
    return Friedman(chi2, float(chdtrc(k - 1, chi2)), f, freedom, p)


def _chance_of_equal_orders(ranks: Floats) -> float:
    """The probability that all patients have the order of the first, out of all orders with its ties."""
    k, n = ranks.shape
    orders = factorial(k) / prod(factorial(ties) for ties in Counter(ranks[:, 0].tolist()).values())
    return float(orders) ** -(n - 1)


def holm(p: Floats) -> Floats:
    r"""Holm's adjusted p-values over the last axis.

    $$\tilde p_{(i)} = \max_{j \le i} \min\{1, (m - j + 1)\, p_{(j)}\}$$

    with $p_{(1)} \le \dots \le p_{(m)}$. If tests with $\tilde p \le \alpha$ reject, the chance of a false rejection is
    at most $\alpha$, however the tests depend on each other.

    Args:
        p: `[..., m]`.
    """
    order = np.argsort(p, axis=-1, kind="stable")
    steps = np.take_along_axis(p, order, -1) * np.arange(p.shape[-1], 0, -1)
    return unsorted(np.maximum.accumulate(np.minimum(steps, 1.0), axis=-1), order)


def unsorted(ordered: Floats, order: Indices) -> Floats:
    """Put sorted values `[..., m]` back into the order that they had before `np.argsort` returned `order`."""
    back = np.empty_like(ordered)
    np.put_along_axis(back, order, ordered, -1)
    return back


@dataclass(frozen=True)
class SignedRank:
    """The result of Wilcoxon's signed-rank test.

    Attributes:
        positive: W+.
        negative: W-.
        p: two-sided p-value.
        exact: whether the distribution was computed exactly; otherwise it was approximated.
        effect: the matched-pairs rank-biserial correlation, (W+ - W-) / (sum of all ranks), from -1 to 1. The sum
            includes the ranks of zeros, so a single difference among equal pairs does not give 1.
    """

    positive: float
    negative: float
    p: float
    exact: bool
    effect: float


def signed_rank(differences: Floats) -> SignedRank:
    r"""Test paired differences: $W^+ = \sum_{d_i > 0} r_i$ with $r_i$ the (mid)ranks of $|d_i|$, zeros included.

    Under the null hypothesis every sign is a fair coin flip, so $W^+$ given the $|d_i|$ is a sum of ranks, each
    included with probability 1/2. Its distribution is computed exactly up to n = 50, as scipy does without ties; ties
    need no correction, and zeros only raise the other ranks (Pratt 1959). Above 50, the normal approximation is used
    with the exact variance $\frac14 \sum_{d_i \ne 0} r_i^2$.

    Args:
        differences: `[n]`; values that agree to ten decimals are ties.
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
    """P(W <= w) for w = 0, 1, ..., if each rank (doubled, so that midranks are whole) counts with probability 1/2."""
    chance = np.zeros(sum(doubled) + 1)
    chance[0] = 1.0
    for rank in doubled:
        moved = np.zeros_like(chance)
        moved[rank:] = chance[: len(chance) - rank]
        chance = (chance + moved) / 2
    return np.cumsum(chance)
