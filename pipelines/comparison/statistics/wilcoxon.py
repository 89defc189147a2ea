r"""Wilcoxon's signed-rank test, exact also with ties and zeros.

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

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import ndtr
from scipy.stats import rankdata

from pipelines.comparison.statistics.scores import DIGITS, Floats

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
